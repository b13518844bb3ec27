# frozen_string_literal: true

require "tasker_core"

# Counts its runs in Redis.
module Counted
  def process(task, sequence, step)
    Sidekiq.redis { |redis| redis.rpush("ran", "#{step.step_id}:#{step.attempt}") }
    super
  end
end

module Orders
  class Charge < TaskerCore::BaseStepHandler
    prepend Counted

    def process(task, _sequence, step)
      { charge_id: "ch_#{task['order_id']}", key: step.idempotency_key }
    end
  end

  class Declined < TaskerCore::BaseStepHandler
    prepend Counted

    def process(_task, _sequence, _step)
      raise TaskerCore::PermanentError.new("card declined", error_code: "card_declined")
    end
  end

  # Ends only with its process.
  class Endless < TaskerCore::BaseStepHandler
    prepend Counted

    def process(_task, _sequence, _step) = Thread.stop
  end

  # Hides the shutdown, as code with `rescue Exception` does.
  class Wrapping < TaskerCore::BaseStepHandler
    prepend Counted

    def process(_task, _sequence, _step)
      Thread.stop
    rescue Exception # rubocop:disable Lint/RescueException
      raise "something went wrong"
    end
  end

  class Exits < TaskerCore::BaseStepHandler
    def process(_task, _sequence, _step) = exit(3)
  end
end

Sidekiq.configure_server do |config|
  config.error_handlers << lambda do |error, *|
    Sidekiq.redis { |redis| redis.rpush("errors", "#{error.class}: #{error.message}") }
  end
end
