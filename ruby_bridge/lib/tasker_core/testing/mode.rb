# frozen_string_literal: true

module TaskerCore
  module Testing
    # What enqueue_task does while a test runs: for all threads, or within a block
    # for the thread that runs it.
    module Mode
      # @!attribute name :disabled, :fake or :inline; options: of TaskRun
      Setting = Struct.new(:name, :options)
      DISABLED = Setting.new(:disabled, {}).freeze
      LOCAL = :tasker_core_testing_mode
      private_constant :LOCAL

      @everywhere = DISABLED

      module_function

      # @return [Setting]
      def current = Thread.current.thread_variable_get(LOCAL) || @everywhere

      def switch(name, **options)
        setting = Setting.new(name, options).freeze
        return @everywhere = setting unless block_given?

        begin
          before = Thread.current.thread_variable_get(LOCAL)
          Thread.current.thread_variable_set(LOCAL, setting)
          yield
        ensure
          Thread.current.thread_variable_set(LOCAL, before)
        end
      end
    end

    # Stands before TaskEnqueue, once this file is loaded.
    # @private
    class Enqueue
      def initialize(arguments)
        @arguments = arguments.compact
      end

      # @return [Integer] task_id
      def call(connection)
        mode = Mode.current
        return TaskEnqueue.new(@arguments).call(connection) if mode.name == :disabled

        template if mode.name == :inline # refused here and now
        task = Tasks.record(EnqueuedTask.new(@arguments, inline: mode.name == :inline), refuse: @arguments[:on_duplicate].to_s == "refuse")
        Tasks.run_due(**mode.options) if task.inline
        task.task_id
      end

      # As BaseTaskHandler asks.
      #
      # @return [Array(Integer, Hash{String => Integer})]
      def call_with_steps(connection)
        return TaskEnqueue.new(@arguments).call_with_steps(connection) if Mode.current.name == :disabled

        [call(connection), steps]
      end

      private

      def template = Testing.templates.find(*@arguments.values_at(:namespace, :name, :version).map { |word| word&.to_s })

      # In fake mode there need not be a template.
      def steps
        template.steps.to_h { |step| [step.name, Testing.next_id] }
      rescue TaskRefusedError, TemplateError
        {}
      end
    end

    # The tasks that were recorded, of all threads.
    # @private
    module Tasks
      @mutex = Mutex.new
      @all = []

      module_function

      def all = @mutex.synchronize { @all.dup.freeze }

      def clear = @mutex.synchronize { @all.clear }

      # @return [EnqueuedTask] the one that has its idempotency key already, if there is one
      def record(task, refuse:)
        @mutex.synchronize do
          known = task.idempotency_key && @all.find { |other| other.full_name == task.full_name && other.idempotency_key == task.idempotency_key }
          raise TaskRefusedError, "task #{known.task_id} has the idempotency key #{task.idempotency_key.inspect} already" if known && refuse

          @all << task unless known
          known || task
        end
      end

      # Runs what is due, in order, and what that enqueues.
      #
      # @param all [Boolean] also what was recorded in fake mode
      # @return [Array<Run>]
      def run_due(all: false, **options)
        runs = []
        while (task = take(all))
          template = Testing.templates.find(task.namespace, task.name, task.version)
          task.run = TaskRun.new(template, task.context, task: task.task, clock: Testing.stopped_clock, **options).call
          runs << task.run
        end
        runs
      end

      def take(all)
        @mutex.synchronize do
          now = Testing.clock.now
          due = @all.select { |task| !task.taken && (all || task.inline) && (task.run_at.nil? || task.run_at <= now) }
          due.min_by.with_index { |task, index| [task.run_at || task.enqueued_at, index] }&.tap { |task| task.taken = true }
        end
      end
    end
  end
end
