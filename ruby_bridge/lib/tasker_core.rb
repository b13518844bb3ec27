# frozen_string_literal: true

require "English"
require "monitor"
require "sidekiq"

require_relative "tasker_core/version"
require_relative "tasker_core/errors"
require_relative "tasker_core/error_mapping"
require_relative "tasker_core/secret_filter"
require_relative "tasker_core/secret_looks"
require_relative "tasker_core/secret_words"
require_relative "tasker_core/error_rules"
require_relative "tasker_core/handler_settings"
require_relative "tasker_core/configuration"
require_relative "tasker_core/clean_text"
require_relative "tasker_core/json_tree"
require_relative "tasker_core/forgiving_json_tree"
require_relative "tasker_core/deep_freeze"
require_relative "tasker_core/deep_copy"
require_relative "tasker_core/database_parameters"
require_relative "tasker_core/connection"
require_relative "tasker_core/database"
require_relative "tasker_core/active_record_database"
require_relative "tasker_core/start_answer"
require_relative "tasker_core/protocol"
require_relative "tasker_core/patience"
require_relative "tasker_core/task_context"
require_relative "tasker_core/heartbeat"
require_relative "tasker_core/step_context"
require_relative "tasker_core/step_sequence"
require_relative "tasker_core/base_step_handler"
require_relative "tasker_core/adopted_arguments"
require_relative "tasker_core/adopted_job"
require_relative "tasker_core/handler_lookup"
require_relative "tasker_core/result_json"
require_relative "tasker_core/point_in_time"
require_relative "tasker_core/failure_record"
require_relative "tasker_core/report"
require_relative "tasker_core/report_queue"
require_relative "tasker_core/sidekiq_errors"
require_relative "tasker_core/handler_times"
require_relative "tasker_core/attempt_run"
require_relative "tasker_core/error_reports"
require_relative "tasker_core/task_carrier"
require_relative "tasker_core/trace_context"
require_relative "tasker_core/header_keys"
require_relative "tasker_core/header_serializers"
require_relative "tasker_core/current_values"
require_relative "tasker_core/open_transactions"
require_relative "tasker_core/handler_surroundings"
require_relative "tasker_core/bundle_watch"
require_relative "tasker_core/attempt_bundle"
require_relative "tasker_core/step_job"
require_relative "tasker_core/process_registration"
require_relative "tasker_core/task_enqueue"
require_relative "tasker_core/near_names"
require_relative "tasker_core/value"
require_relative "tasker_core/http_outcome"
require_relative "tasker_core/api_client"
require_relative "tasker_core/api_step_handler"
require_relative "tasker_core/task_request"
require_relative "tasker_core/results"
require_relative "tasker_core/workflow_queries"
require_relative "tasker_core/workflow_coordinator"
require_relative "tasker_core/template_file"
require_relative "tasker_core/base_task_handler"
require_relative "tasker_core/task_handler_registry"
require_relative "tasker_core/event_protocol"
require_relative "tasker_core/listening_connection"
require_relative "tasker_core/listener"
require_relative "tasker_core/task_ends"
require_relative "tasker_core/event_names"
require_relative "tasker_core/event"
require_relative "tasker_core/event_handlers"
require_relative "tasker_core/event_subscription"
require_relative "tasker_core/event_subscriber"
require_relative "tasker_core/event_publication"
require_relative "tasker_core/app_executor"
require_relative "tasker_core/event_worker"
require_relative "tasker_core/event_runner"
require_relative "tasker_core/event_publisher"
require_relative "tasker_core/records"
require_relative "tasker_core/after_fork"

# Runs the steps of tasker's workflows in the team's own Sidekiq.
#
# The engine decides and Postgres is the truth: this gem starts an attempt,
# runs its handler and reports, and each of the three is a call of an SQL
# function that may refuse. It keeps no state that matters: a process may die
# at any point, and the engine has the attempt run again elsewhere.
#
# For handlers see BaseStepHandler; to start a task, TaskerCore.enqueue_task.
module TaskerCore
  @monitor = Monitor.new
  @handler_times = HandlerTimes.new

  class << self
    # @yieldparam config [Configuration]
    # @return [Configuration]
    # @raise [ConfigurationError]
    def configure
      yield config
      config.validate!
      @monitor.synchronize do
        @reports&.close
        @database = @reports = nil # the next use opens what is configured now
      end
      config
    end

    # @return [Configuration]
    def config = @config || @monitor.synchronize { @config ||= Configuration.new }

    # @return [Logger]
    def logger = config.logger

    # Inserts a task, which starts if and only if the surrounding transaction commits.
    #
    #   Order.transaction do
    #     order = Order.create!(…)
    #     TaskerCore.enqueue_task(namespace: "shop", name: "fulfil_order", context: { order_id: order.id })
    #   end
    #
    # @param namespace [String]
    # @param name [String] of the template
    # @param context [Hash] what the task is about; JSON, up to 1 MiB
    # @param connection [PG::Connection, ActiveRecord::ConnectionAdapters::AbstractAdapter, nil]
    #   nil: that of ActiveRecord::Base
    # @param version [String, nil] such as "1.2.0"; nil: the latest
    # @param priority [Integer, nil] 1 (goes first) to 4
    # @param run_at [Time, nil] not before; nil: at once
    # @param idempotency_key [String, nil] unique per namespace and name
    # @param on_duplicate [String, Symbol, nil] when the key is taken: "return_existing" (the default) or "refuse"
    # @param correlation_id [String, nil]
    # @param tags [Array<String>, nil]
    # @param initiator [String, nil]
    # @param source_system [String, nil]
    # @param reason [String, nil]
    # @param deadline [Time, nil] after which the task fails, whatever is still to do
    # @param parent_task_id [Integer, nil] the task whose step enqueues this one
    # @param bypass_steps [Array<String>, nil] names of steps that this task skips from the start
    # @return [Integer] task_id
    # @raise [TaskRefusedError] the template is unknown, the context isn't JSON, …; nothing was
    #   written, and the surrounding transaction has failed
    def enqueue_task(namespace:, name:, context: {}, connection: nil, version: nil, priority: nil, run_at: nil,
                     idempotency_key: nil, on_duplicate: nil, correlation_id: nil, tags: nil,
                     initiator: nil, source_system: nil, reason: nil, deadline: nil, parent_task_id: nil,
                     bypass_steps: nil)
      enqueuing.new({ namespace:, name:, context:, version:, priority:, run_at:, idempotency_key:, on_duplicate:,
                      correlation_id:, tags:, initiator:, source_system:, reason:, deadline:, parent_task_id:, bypass_steps: }).call(connection)
    end

    # Waits for the ends of tasks.
    #
    # @return [TaskEnds]
    def task_ends = @task_ends || @monitor.synchronize { @task_ends ||= TaskEnds.new(listener) }

    # @private
    def listener = @listener || @monitor.synchronize { @listener ||= Listener.new }

    # @private
    # @return [EventRunner, nil] nil: no subscriber runs in this process
    attr_reader :event_runner

    # @private
    def start_event_runner = @event_runner || @monitor.synchronize { @event_runner ||= EventRunner.new(listener) }

    # @private
    def stop_event_runner(timeout)
      runner = @monitor.synchronize { @event_runner.tap { @event_runner = nil } }
      runner&.stop(timeout:)
    end

    # @private What enqueues; tasker_core/testing puts itself in between.
    attr_writer :enqueuing

    # @private
    def enqueuing = @enqueuing || TaskEnqueue

    # @private
    def database = @database || @monitor.synchronize { @database ||= Database.new }

    # @private
    def protocol = Protocol.new(database)

    # @private
    def reports = @reports || @monitor.synchronize { @reports ||= ReportQueue.new(protocol) }

    # @private
    attr_reader :handler_times

    # @private
    def bundle_watch = @bundle_watch || @monitor.synchronize { @bundle_watch ||= BundleWatch.new }

    # @private
    def process_registration
      @process_registration || @monitor.synchronize { @process_registration ||= ProcessRegistration.new }
    end

    # @private
    def forget_connections
      [@database, @process_registration, @listener, @event_runner].compact.each(&:discard)
      @database = @reports = @bundle_watch = @process_registration = @listener = @task_ends = @event_runner = nil
      @monitor = Monitor.new # another thread may have held the old one when the process forked
    end
  end
end

require_relative "tasker_core/sidekiq_server"
require_relative "tasker_core/sidekiq_events"
require_relative "tasker_core/railtie" if defined?(Rails::Railtie)
