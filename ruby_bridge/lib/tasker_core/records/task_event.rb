# frozen_string_literal: true

module TaskerCore
  # What happened to a task or a step, as tasker.events has it.
  class TaskEvent < Record
    self.table_name = "tasker.events"
    self.primary_key = "event_id"

    belongs_to :task, class_name: "TaskerCore::Task", foreign_key: "task_id", inverse_of: :events
    belongs_to :step, class_name: "TaskerCore::Step", foreign_key: "step_id", optional: true, inverse_of: :events
  end
end
