# frozen_string_literal: true

module TaskerCore
  # A task was made, with its steps; see BaseTaskHandler#initialize_task.
  class TaskInitializationResult < Value
    # @!attribute [r] task_id
    #   @return [Integer]
    # @!attribute [r] step_count
    #   @return [Integer]
    # @!attribute [r] step_mapping
    #   @return [Hash{String => Integer}] name of a step to its step_id, in the template's order
    attributes :task_id, :step_count, :step_mapping
  end

  # A step that may start now, as far as the engine's rules go.
  class ViableStep < Value
    # @!attribute [r] step_id
    #   @return [Integer]
    # @!attribute [r] task_id
    #   @return [Integer]
    # @!attribute [r] name
    #   @return [String]
    # @!attribute [r] current_state
    #   @return [String] "pending" or "waiting_for_retry"
    # @!attribute [r] dependencies_satisfied
    #   @return [Boolean]
    # @!attribute [r] retry_eligible
    #   @return [Boolean] whether the limit leaves an attempt
    # @!attribute [r] attempts
    #   @return [Integer] that count against the limit
    # @!attribute [r] retry_limit
    #   @return [Integer] attempts, not retries
    # @!attribute [r] last_failure_at
    #   @return [Time, nil] UTC
    # @!attribute [r] next_retry_at
    #   @return [Time, nil] UTC
    # @!attribute [r] explanation
    #   @return [String] in words, also when no worker is there to start it
    attributes :step_id, :task_id, :name, :current_state, :dependencies_satisfied, :retry_eligible, :attempts, :retry_limit,
               :last_failure_at, :next_retry_at, :explanation
  end

  # A step and what came of it, as it was when it was read.
  class StepResult < Value
    # @!attribute [r] step_id
    #   @return [Integer]
    # @!attribute [r] name
    #   @return [String]
    # @!attribute [r] state
    #   @return [String] docs/state_machine.md has them
    # @!attribute [r] attempts
    #   @return [Integer] number of the current attempt; 0: none yet
    # @!attribute [r] result
    #   @return [Object, nil] JSON value
    # @!attribute [r] error
    #   @return [Hash{String => Object}, nil] the last failure; kept when a later attempt succeeds
    # @!attribute [r] started_at
    #   @return [Time, nil] UTC, of the current attempt
    # @!attribute [r] finished_at
    #   @return [Time, nil] UTC
    # @!attribute [r] retry_at
    #   @return [Time, nil] UTC; nil unless it waits for its retry
    attributes :step_id, :name, :state, :attempts, :result, :error, :started_at, :finished_at, :retry_at

    # @return [Boolean]
    def complete? = state == "complete"

    # @return [Boolean] for good: no attempt follows by itself
    def failed? = state == "error"

    # @return [Boolean] whether what depends on it may go on
    def satisfied? = %w[complete skipped resolved_manually].include?(state)

    # @return [Float, nil] seconds that the last attempt took; nil while it runs
    def duration = (finished_at - started_at if started_at && finished_at)

    # @return [Error, nil] the last failure as an error, with its message and backtrace
    def exception = ErrorMapping.error_of(error)
  end

  # A task and what came of it, as it was when it was read.
  class TaskResult < Value
    # @!attribute [r] task_id
    #   @return [Integer]
    # @!attribute [r] namespace
    #   @return [String]
    # @!attribute [r] name
    #   @return [String]
    # @!attribute [r] version
    #   @return [String]
    # @!attribute [r] state
    #   @return [String] docs/state_machine.md has them
    # @!attribute [r] execution_status
    #   @return [String] such as "processing" or "waiting_for_retry"
    # @!attribute [r] total_steps
    #   @return [Integer]
    # @!attribute [r] completed_steps
    #   @return [Integer] those that what depends on them may go on after: skipped and resolved ones too
    # @!attribute [r] failed_steps
    #   @return [Integer]
    # @!attribute [r] error
    #   @return [Hash{String => Object}, nil] of a task in state error
    # @!attribute [r] created_at
    #   @return [Time] UTC
    # @!attribute [r] started_at
    #   @return [Time, nil] UTC
    # @!attribute [r] finished_at
    #   @return [Time, nil] UTC
    # @!attribute [r] next_retry_at
    #   @return [Time, nil] UTC
    # @!attribute [r] steps
    #   @return [Array<StepResult>] in the template's order
    attributes :task_id, :namespace, :name, :version, :state, :execution_status, :total_steps, :completed_steps, :failed_steps,
               :error, :created_at, :started_at, :finished_at, :next_retry_at, :steps

    # @return [Boolean]
    def complete? = state == "complete"

    # @return [Boolean]
    def failed? = state == "error"

    # @return [Boolean] whether nothing more happens by itself
    def finished? = !%w[pending in_progress].include?(state)

    # @return [Float, nil] seconds from the enqueueing to the end
    def duration = (finished_at - created_at if finished_at)

    # @param name [String, Symbol]
    # @return [StepResult, nil] nil when the task has no such step
    def step(name) = steps.find { |step| step.name == name.to_s }

    # @param name [String, Symbol] of a step
    # @return [Object, nil] JSON value
    # @raise [KeyError] when the task has no such step
    def result_of(name)
      step = step(name)
      raise KeyError.new("task #{task_id} has no step #{name.to_s.inspect}#{NearNames.hint(name, steps.map(&:name))}", receiver: self, key: name) unless step

      step.result
    end
  end
end
