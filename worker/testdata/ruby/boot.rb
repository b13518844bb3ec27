# frozen_string_literal: true

# What the real sidekiq process of the tests loads: the gem and a few handlers.
require "sidekiq"
require "tasker_core"

Sidekiq.configure_server { |c| c.redis = { url: ENV.fetch("REDIS_URL") } }
Sidekiq.configure_client { |c| c.redis = { url: ENV.fetch("REDIS_URL") } }

# Returns its config and what it was given.
class Echo < TaskerCore::BaseStepHandler
  def process(_task, _sequence, step)
    step.config.merge("attempt" => step.attempt)
  end
end

# Of a version that is being deployed.
class Late < Echo; end if ENV["TASKER_TEST_LATE"]

# Multiplies the values of its dependencies and squares the product, like the
# Go handler of the same name.
class Square < TaskerCore::BaseStepHandler
  def process(task, sequence, step)
    values = step.depends_on.map { |name| sequence.find_step_by_name(name).results.fetch("value") }
    product = values.empty? ? task.context.fetch("n") : values.reduce(:*)
    { "value" => product * product }
  end
end

# Works for a while, so that a test can kill its process in the middle.
class Work < TaskerCore::BaseStepHandler
  def process(_task, _sequence, step)
    sleep step.config.fetch("seconds")
    { "worked" => true }
  end
end

# Fails as its config says.
class Fail < TaskerCore::BaseStepHandler
  def process(_task, _sequence, step)
    if step.config["permanent"]
      raise TaskerCore::PermanentError.new("told to", error_code: "told_to")
    elsif step.attempts_used <= step.config.fetch("times")
      raise TaskerCore::RetryableError.new("told to", retry_after: step.config["retry_after"])
    end

    { "attempts_used" => step.attempts_used }
  end
end

# Returns what can't be stored, or what can just be.
class Return < TaskerCore::BaseStepHandler
  RESULTS = {
    "object" => -> { { "io" => $stdout } },
    "nan" => -> { { "list" => [1, Float::NAN] } },
    "nul" => -> { { "text" => "a\0b" } },
    "utf8" => -> { { "text" => "a\xFFb" } },
    "mebibyte" => -> { { "text" => "x" * (1 << 20) } },
    "large" => -> { { "text" => "x" * (5 << 20) } },
  }.freeze

  def process(_task, _sequence, step)
    RESULTS.fetch(step.name).call
  end
end

# Folds the values of its dependencies into one number; before that it fails as
# often as it is told, or takes longer in its first attempt than it may. The
# final value of a DAG of these tells its order and data flow.
class Mix < TaskerCore::BaseStepHandler
  MODULUS = 1_000_000_007

  def process(_task, sequence, step)
    if step.attempts_used == 1 && step.config["overruns"].to_s != ""
      Overrun.wait(step)
      return { "value" => -1 }
    end
    raise TaskerCore::RetryableError, "not yet" if step.attempts_used <= step.config["failures"].to_i

    sum = step.depends_on.sum { |name| sequence.find_step_by_name(name).results.fetch("value") }
    { "value" => ((sum * 31) + step.config.fetch("salt")) % MODULUS }
  end
end

# Waits until an attempt is not the current one any more.
module Overrun
  CONNECTION = PG.connect(ENV.fetch("TASKER_DATABASE_URL"))
  LOCK = Mutex.new

  def self.wait(step)
    sleep 0.05 while current?(step)
  end

  def self.current?(step)
    LOCK.synchronize do
      CONNECTION.exec_params("SELECT attempts = $2 AND state = 'in_progress' FROM tasker.steps WHERE step_id = $1", [step.step_id, step.attempt]).getvalue(0, 0) == "t"
    end
  end
end
