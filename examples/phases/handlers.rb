# frozen_string_literal: true

# The app: its task handler, and its step handlers, which run in Sidekiq. Both
# the sidekiq process and phases.rb load it.

require "active_record"
require "active_support/core_ext/string/inflections" # constantize
require "tasker_core"

ActiveRecord::Base.establish_connection(ENV.fetch("DATABASE_URL"))

module Trips
  # Makes tasks of the template travel/book_trip.
  class BookTrip < TaskerCore::BaseTaskHandler
    def validate_context(context)
      raise TaskerCore::ValidationError, "nobody flies to #{context['city']}" if context["city"] == "Atlantis"
    end
  end

  # What the trip consists of, and costs.
  class Plan < TaskerCore::BaseStepHandler
    PRICES = { "flight" => 210, "hotel" => 340 }.freeze

    def process(task, _sequence, _step)
      { city: task["city"], euros: PRICES }
    end
  end

  # The flight or the hotel: the step's name says which.
  class Book < TaskerCore::BaseStepHandler
    def process(_task, sequence, step)
      sleep 1 # airlines and hotels take their time
      { reference: step.idempotency_key, euros: sequence.results_of("plan")["euros"][step.name] }
    end
  end

  # Knows which failures pass, and which don't.
  class Charge < TaskerCore::BaseStepHandler
    def process(task, sequence, step)
      raise TaskerCore::PermanentError.new("the card is declined", error_code: "declined") if task["card"] == "expired"
      raise TaskerCore::RetryableError.new("the bank is busy", retry_after: 3) if step.attempt == 1

      { euros: sequence.results_of("flight")["euros"] + sequence.results_of("hotel")["euros"] }
    end
  end

  # The last word. An event of the app's own goes with it.
  class Confirm < TaskerCore::BaseStepHandler
    def process(task, sequence, step)
      TaskerCore::EventPublisher.publish("trip.booked", { city: task["city"] }, step:)
      { text: "#{task['city']} for #{sequence.results_of('charge')['euros']} EUR" }
    end
  end
end
