# frozen_string_literal: true

require "json"
require "pg"

module TaskerCore
  # One call of tasker.publish_event, on the connection of whoever asks.
  class EventPublication
    SQL = "SELECT tasker.publish_event($1::text, $2::jsonb, $3::bigint, $4::bigint, $5::int) AS event_id"

    # @param task [TaskContext, Integer, nil]
    # @param step [StepContext, Integer, nil]
    # @raise [EventRefusedError]
    def initialize(name, data, task: nil, step: nil)
      @name = EventNames.check_own(name)
      raise EventRefusedError, "the data of event #{@name} is a Hash, not #{data.class}" unless data.is_a?(Hash)

      @data = JSON.generate(JsonTree.build(data), max_nesting: 0)
      @task_id = task.respond_to?(:task_id) ? task.task_id : task
      @step_id, @attempt = step.respond_to?(:step_id) ? [step.step_id, step.attempt] : [step, nil]
    rescue JsonTree::Refused => e
      raise EventRefusedError, "the data of event #{@name} is not JSON: #{e.message}"
    end

    # @param connection [PG::Connection, ActiveRecord::ConnectionAdapters::AbstractAdapter, nil]
    # @return [Integer] the event's id
    # @raise [EventRefusedError]
    def call(connection)
      execute(connection).first["event_id"].to_i
    rescue StandardError => e
      raise refusal(e) || e
    end

    private

    def execute(connection)
      values = [@name, @data, @task_id, @step_id, @attempt]
      return connection.exec_params(SQL, values) if connection.respond_to?(:exec_params)
      return ActiveRecordDatabase.new(connection).exec(SQL, values) if connection || defined?(ActiveRecord::Base)

      TaskerCore.database.exec(SQL, values)
    end

    # What the engine, or jsonb, has against the values. All else goes through
    # as it is: the app may know how to deal with it.
    def refusal(error)
      pg = [error, error.cause].find { |e| e.is_a?(PG::Error) && e.respond_to?(:result) && e.result }
      return unless pg&.result&.error_field(PG::PG_DIAG_SQLSTATE).to_s.start_with?("TK", "22")

      text = [PG::PG_DIAG_MESSAGE_PRIMARY, PG::PG_DIAG_MESSAGE_HINT].filter_map { |field| pg.result.error_field(field) }
      EventRefusedError.new(text.join(" – "))
    end
  end
end
