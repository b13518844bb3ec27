# frozen_string_literal: true

module TaskerCore
  # A task, as tasker.tasks has it.
  #
  #   TaskerCore::Task.failed.by_name("fulfil_order", namespace: "shop").each { |task| task.retry!(by: "ops", reason: "gateway is back") }
  class Task < Record
    self.table_name = "tasker.tasks"
    self.primary_key = "task_id"

    has_many :steps, -> { order(:position) }, class_name: "TaskerCore::Step", foreign_key: "task_id", inverse_of: :task
    has_many :events, -> { order(:event_id) }, class_name: "TaskerCore::TaskEvent", foreign_key: "task_id", inverse_of: :task
    has_many :children, class_name: "TaskerCore::Task", foreign_key: "parent_task_id", inverse_of: :parent
    belongs_to :parent, class_name: "TaskerCore::Task", foreign_key: "parent_task_id", optional: true, inverse_of: :children
    belongs_to :template, class_name: "TaskerCore::TaskTemplate", foreign_key: "template_id", inverse_of: :tasks

    %w[pending in_progress complete cancelled resolved_manually].each { |state| scope state, -> { where(state:) } }
    scope :failed, -> { where(state: "error") }
    scope :unfinished, -> { where(state: %w[pending in_progress]) }
    scope :paused, -> { unfinished.where.not(paused_at: nil) }
    # Those of which a step waits for its next attempt.
    scope :waiting, lambda {
      unfinished.where("EXISTS (SELECT FROM tasker.steps s WHERE s.task_id = tasks.task_id AND s.state = 'waiting_for_retry')")
    }
    scope :by_name, ->(name, namespace: nil) { where({ name:, namespace: }.compact) }

    # @return [Boolean]
    def complete? = state == "complete"

    # @return [Boolean] in error: an operator's retry goes on from there
    def failed? = state == "error"

    # @return [Boolean] nothing happens to it any more, unless somebody steers it
    def finished? = !%w[pending in_progress].include?(state)

    # @return [Boolean]
    def paused? = !paused_at.nil?

    # Stops the task for good. Handlers that run are told at their next heartbeat.
    #
    # @param by [String] who does it
    # @param reason [String, nil] why; both are kept in the event
    # @return [self] read again
    # @raise [StateTransitionError]
    def cancel!(by:, reason: nil) = steer("cancel_task", %w[text text], by, reason)

    # Runs the failed steps of a task in error again; what has finished stays finished.
    #
    # @param context [Hash, nil] the task goes on with this context; nil: with its own
    # @return [self]
    # @raise [StateTransitionError]
    # @raise [TaskRefusedError] the context does not fit
    def retry!(by:, reason: nil, context: nil) = steer("retry_task", %w[text text jsonb], by, reason, json(context))

    # Declares a task in error done: somebody did its work by other means.
    #
    # @return [self]
    # @raise [StateTransitionError]
    def resolve!(by:, reason: nil) = steer("resolve_task", %w[text text], by, reason)

    # Keeps the task from starting attempts.
    #
    # @return [self]
    # @raise [StateTransitionError]
    def pause!(by:, reason: nil) = steer("pause_task", %w[text text], by, reason)

    # Ends a pause.
    #
    # @return [self]
    # @raise [StateTransitionError]
    def resume!(by:, reason: nil) = steer("resume_task", %w[text text], by, reason)

    # Starts a task that was enqueued for later, and attempts that wait for their retry.
    #
    # @return [self]
    # @raise [StateTransitionError]
    def run_now!(by:, reason: nil) = steer("run_task_now", %w[text text], by, reason)

    # @param priority [Integer] 1 (goes first) to 4
    # @return [self]
    # @raise [StateTransitionError, TaskRefusedError]
    def change_priority!(priority, by:, reason: nil) = steer("set_task_priority", %w[smallint text text], priority, by, reason)
  end
end
