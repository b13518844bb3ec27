# frozen_string_literal: true

require "tasker_core"

# Handlers that do what they should not, one each.
module Bad
  class Fine < TaskerCore::BaseStepHandler
    def process(_task, _sequence, step) = { attempt: step.attempt, pid: Process.pid }
  end

  # Until somebody has opened the pipe for writing, and closed it.
  class Waits < TaskerCore::BaseStepHandler
    def process(task, _sequence, step)
      File.read(task["gate"])
      { attempt: step.attempt }
    end
  end

  class NeverReturns < TaskerCore::BaseStepHandler
    def process(_task, _sequence, _step) = Thread.stop
  end

  class Raises < TaskerCore::BaseStepHandler
    def process(_task, _sequence, _step) = raise(Exception, "of its own making") # rubocop:disable Lint/RaiseException
  end

  class Throws < TaskerCore::BaseStepHandler
    def process(_task, _sequence, _step) = throw(:out)
  end

  class Exits < TaskerCore::BaseStepHandler
    def process(_task, _sequence, _step) = exit(3)
  end

  # Takes the process with it, the first time.
  class ExitsAtOnce < TaskerCore::BaseStepHandler
    def process(_task, _sequence, step) = step.attempt == 1 ? exit!(3) : { attempt: step.attempt, used: step.attempts_used }
  end

  class ReturnsTooMuch < TaskerCore::BaseStepHandler
    def process(_task, _sequence, _step) = { text: "x" * (10 << 20) }
  end

  class ReturnsAnObject < TaskerCore::BaseStepHandler
    def process(_task, _sequence, _step) = { thread: Thread.current }
  end

  class Mutates < TaskerCore::BaseStepHandler
    def process(task, _sequence, _step) = task.context["order"]["id"] = 1
  end
end

Sidekiq.configure_server do |config|
  config.error_handlers << lambda do |error, *|
    Sidekiq.redis { |redis| redis.rpush("errors", "#{error.class}: #{error.message}") }
  end
end
