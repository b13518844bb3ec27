# frozen_string_literal: true

module TaskerCore
  module Testing
    # Runs one attempt as AttemptRun does, without Postgres and Sidekiq: same
    # inputs, same hooks, and what is stored in the end.
    #
    # What is no failure of a step goes through to the test: an assertion that
    # fails in a handler, Interrupt.
    class Attempt
      # @param handler [#call] takes task, sequence and step, and returns the results
      # @param answer [Hash] as in contract/start_attempt.json; JSON values
      # @param steps [Hash{String => Array(String, Object)}] of the task: state and result by name
      # @param clock [Clock]
      def initialize(handler, answer, steps:, clock:)
        @handler = handler
        @answer = answer
        @steps = steps
        @clock = clock
      end

      # @return [Outcome]
      def call
        heart = Heart.new(@answer["step"], @clock)
        begin
          result = StoredJson.read(run(heart))
        rescue *AttemptRun::FAILURES, SystemExit => e
          exception = e
          error = stored(FailureRecord.new(e, handler: @answer.dig("step", "handler_class")).to_h)
        end
        # Whoever is late has failed, whatever came of it.
        error = stored(heart.overdue) if heart.overdue
        Outcome.new(result: error ? nil : result, error:, exception:, heartbeats: heart.beats, progress: @answer.dig("step", "progress"), now: @clock.now)
      end

      # StepSequence asks for what is not a dependency.
      # @private
      def step_of_task(_task_id, name) = @steps[name]

      # @private
      def names_of_steps(_task_id) = @steps.keys

      # @private
      def states_of_steps(_task_id, names) = names.to_h { |name| [name, @steps.fetch(name).first] }

      private

      def run(heart)
        # Known to carry nothing: nobody has to ask Postgres.
        task = TaskContext.new({ "carrier" => nil, **@answer.fetch("task") })
        step = StepContext.new(@answer.fetch("step"), inputs: task.context, dependencies: @answer.fetch("dependencies"), heartbeat: heart)
        sequence = StepSequence.new(task.task_id, @answer.fetch("dependencies"), protocol: self)
        Testing.with_clock(@clock) { ResultJson.dump(@handler.call(task, sequence, step)) }
      end

      # As in tasker.steps.error.
      def stored(failure)
        failure = failure.reject { |key, value| key == "permanent" && !value }
        StoredJson.read(JSON.generate({ **failure, "attempt" => @answer.dig("step", "attempt") }, max_nesting: 0))
      end
    end
  end
end
