# frozen_string_literal: true

# Read-only models of tasker's tables, for apps with ActiveRecord; loaded when
# one of them is used first.
module TaskerCore
  autoload :Record, File.join(__dir__, "records/record")
  autoload :Task, File.join(__dir__, "records/task")
  autoload :Step, File.join(__dir__, "records/step")
  autoload :TaskEvent, File.join(__dir__, "records/task_event")
  autoload :TaskTemplate, File.join(__dir__, "records/task_template")
end
