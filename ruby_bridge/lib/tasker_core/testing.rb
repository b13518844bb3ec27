# frozen_string_literal: true

require "tasker_core"
require_relative "testing/errors"
require_relative "testing/stored_json"
require_relative "testing/clock"
require_relative "testing/retry_policy"
require_relative "testing/yaml_tree"
require_relative "testing/template"
require_relative "testing/templates"
require_relative "testing/heart"
require_relative "testing/outcome"
require_relative "testing/attempt"
require_relative "testing/handler"
require_relative "testing/run"
require_relative "testing/task_run"
require_relative "testing/enqueued_task"
require_relative "testing/mode"

module TaskerCore
  # For tests of users of the gem; see docs/testing.md.
  #
  #   require "tasker_core/testing"
  #
  #   outcome = TaskerCore::Testing.run_step(Orders::Charge, context: { order_id: 5 }, dependencies: { "reserve" => { price: 10 } })
  #   outcome.result["amount"] # => 10
  #
  # Nothing here needs Postgres or Redis but Testing::System, which says so.
  module Testing
    autoload :System, File.expand_path("testing/system", __dir__)

    CLOCK = :tasker_core_testing_clock
    private_constant :CLOCK

    @clock = Clock.new
    @templates = Templates.new
    @ids = 0
    @mutex = Mutex.new

    class << self
      # Runs one attempt of a step, here and now. What the handler is given went
      # through JSON and is frozen, as in production; what it returns too.
      #
      # @param handler [Class, String, BaseStepHandler] the class, its name, or a handler that was made already
      # @param context [Hash] of the task
      # @param dependencies [Hash{String, Symbol => Object}] results of the direct dependencies, by step
      # @param config [Hash] handler_config of the step
      # @param attempt [Integer] number of this attempt, from 1
      # @param attempt_limit [Integer]
      # @param progress [Object] what the last heartbeat of an earlier attempt carried
      # @param steps [Hash{String, Symbol => Object}] results of other steps of the task, for handlers that look further
      # @param timeout [Numeric, nil] seconds; Testing.travel in the handler lets them pass
      # @param heartbeat [Numeric, nil] seconds that may lie between two heartbeats
      # @param step [String] its name
      # @param task [Hash] other members of the task: "priority", "tags", "correlation_id" and the like
      # @return [Outcome]
      # @raise [InputError] what is given is not JSON
      def run_step(handler, context: {}, dependencies: {}, config: {}, attempt: 1, attempt_limit: 3, progress: nil, steps: {},
                   timeout: nil, heartbeat: nil, step: "step", task: {})
        clock = stopped_clock
        results = StoredJson.build(dependencies, "what is given as dependencies")
        known = { **results, **StoredJson.build(steps, "what is given as steps") }.transform_values { |result| ["complete", result] }
        step_id = next_id
        answer = {
          "task" => { "task_id" => next_id, "namespace" => "test", "name" => "task", "version" => "0.1.0", "priority" => 2,
                      "created_at" => JsonTree.build(clock.now), **StoredJson.build(task, "what is given as task"),
                      "context" => StoredJson.build(context, "the context") },
          "step" => { "step_id" => step_id, "idempotency_key" => "tasker-test-#{step_id}",
                      "name" => step.to_s, "attempt" => attempt, "attempts_used" => attempt, "attempt_limit" => attempt_limit,
                      "handler_class" => name_of(handler), "config" => StoredJson.build(config, "what is given as config"), "timeout_seconds" => timeout,
                      "heartbeat_seconds" => heartbeat, "progress" => StoredJson.build(progress, "what is given as progress"), "depends_on" => results.keys },
          "dependencies" => results
        }
        Attempt.new(Handler.of(handler), answer, steps: known, clock:).call
      end

      # Runs a whole template, on a clock of its own: no delay is waited for.
      #
      #   run = TaskerCore::Testing.run_task("config/tasker/tasks/fulfil_order.yaml", context: { order_id: 5 },
      #                                      stub: { "charge" => [Timeout::Error, { charge_id: 1 }] })
      #   run.complete? # => true
      #   run["charge"].attempts.map(&:at) # => [0, 1]
      #
      # @param template [String, Hash] a file, YAML text, or the same as a Hash
      # @param context [Hash] of the task
      # @param stub [Hash{String, Symbol => Object}] by step, in place of its handler: a result, an exception to
      #   raise, something to call with task, sequence and step, or a list of these, one per attempt
      # @param skip [Array<String>] steps that are skipped from the start
      # @param attempts [Integer, Hash{String => Integer}, nil] how many a step may use up, instead of the template's limit
      # @param task [Hash] other members of the task
      # @param environment [String, nil] overlay of the template; default: TASKER_ENV, else RAILS_ENV
      # @param variables [Hash{String => String}] what ${NAME} in the template stands for
      # @return [Run]
      # @raise [TemplateError, InputError, StubMissingError]
      def run_task(template, context: {}, stub: {}, skip: [], attempts: nil, task: {}, environment: self.environment, variables: {})
        task = StoredJson.build(task, "what is given as task")
        TaskRun.new(Template.read(template, environment:, variables:), StoredJson.build(context, "the context"),
                    stub:, skip:, attempts:, task:, clock: stopped_clock).call
      end

      # TaskerCore.enqueue_task records the task and inserts nothing. With a block: within it, in this thread.
      def fake!(&) = Mode.switch(:fake, &)

      # TaskerCore.enqueue_task runs the task at once, inline, with the template of #templates. A task that is to
      # run later waits for #travel. With a block: within it, in this thread.
      #
      # @param options stub, skip and attempts of #run_task
      def inline!(**options, &) = Mode.switch(:inline, **options, &)

      # TaskerCore.enqueue_task inserts tasks, as in production. With a block: within it, in this thread.
      def disable!(&) = Mode.switch(:disabled, &)

      # @return [Array<EnqueuedTask>] what was enqueued since #clear, by any thread
      def tasks = Tasks.all

      # Runs inline what was recorded and is due, and what that enqueues.
      #
      # @param options stub, skip and attempts of #run_task
      # @return [Array<Run>]
      def drain(**options) = Tasks.run_due(all: true, **options)

      # Forgets the recorded tasks and sets the clock back. Call it before each test.
      # @return [void]
      def clear
        Tasks.clear
        @clock = Clock.new
        nil
      end

      # @return [Templates] those that inline mode finds
      attr_reader :templates

      # @return [String] folder of the app's templates
      def templates_folder
        @templates_folder || File.join(defined?(Rails) && Rails.respond_to?(:root) && Rails.root ? Rails.root.to_s : Dir.pwd, "config/tasker/tasks")
      end
      # Where it is, for an app that has it elsewhere.
      attr_writer :templates_folder

      # Lets time pass. In a handler that is run inline: for its attempt, whose timeout or heartbeat may be over then.
      # Within Testing::System.run: for the database. Else: for tasks that were enqueued for later in inline mode.
      #
      # @param seconds [Numeric, ActiveSupport::Duration]
      # @return [void]
      # @raise [InputError] below 0
      def travel(seconds)
        running = Thread.current.thread_variable_get(CLOCK)
        return system.travel(seconds) if running.nil? && system

        clock.advance(seconds)
        Tasks.run_due(**Mode.current.options) if running.nil? && Mode.current.name == :inline
        nil
      end

      # @private
      attr_accessor :system

      # @private
      def clock = Thread.current.thread_variable_get(CLOCK) || @clock

      # @private
      def with_clock(clock)
        before = Thread.current.thread_variable_get(CLOCK)
        Thread.current.thread_variable_set(CLOCK, clock)
        yield
      ensure
        Thread.current.thread_variable_set(CLOCK, before)
      end

      # @private
      def stopped_clock = clock.now.then { |now| Clock.new(-> { now }) }

      # @private
      def next_id = @mutex.synchronize { @ids += 1 }

      # @private
      def environment = ENV["TASKER_ENV"] || ENV.fetch("RAILS_ENV", nil)

      private

      def name_of(handler)
        case handler
        when BaseStepHandler then handler.class.name || handler.class.inspect
        when Class then handler.name || handler.inspect
        else handler.to_s
        end
      end
    end
  end
end

TaskerCore.enqueuing = TaskerCore::Testing::Enqueue
