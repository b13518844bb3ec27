# frozen_string_literal: true

module TaskerCore
  # A step of a task, as tasker.steps has it.
  class Step < Record
    self.table_name = "tasker.steps"
    self.primary_key = "step_id"

    belongs_to :task, class_name: "TaskerCore::Task", foreign_key: "task_id", inverse_of: :steps
    has_many :events, -> { order(:event_id) }, class_name: "TaskerCore::TaskEvent", foreign_key: "step_id", inverse_of: :step

    %w[pending enqueued in_progress waiting_for_retry complete cancelled skipped resolved_manually].each { |state| scope state, -> { where(state:) } }
    scope :failed, -> { where(state: "error") }

    # @return [Boolean]
    def complete? = state == "complete"

    # @return [Boolean]
    def failed? = state == "error"

    # Runs a step in error again, or one that waits for its retry at once.
    #
    # @param by [String] who does it
    # @param reason [String, nil] why; both are kept in the event
    # @param context [Hash, nil] the task goes on with this context; nil: with its own
    # @return [self] read again
    # @raise [StateTransitionError]
    # @raise [TaskRefusedError] the context does not fit
    def retry!(by:, reason: nil, context: nil) = steer("retry_step", %w[text text jsonb], by, reason, json(context))

    # Settles the step without a result; steps behind it may start.
    #
    # @return [self]
    # @raise [StateTransitionError]
    def skip!(by:, reason: nil) = steer("skip_step", %w[text text], by, reason)

    # Settles the step with a given result; steps behind it may start.
    #
    # @param result [Object] JSON values
    # @return [self]
    # @raise [StateTransitionError]
    # @raise [TaskRefusedError] the result does not fit
    def resolve!(result = nil, by:, reason: nil) = steer("resolve_step", %w[jsonb text text], json(result) || "null", by, reason)
  end
end
