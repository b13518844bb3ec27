# frozen_string_literal: true

require "tasker_core"

# The app of component_list_spec.
module Listed
  class FulfilOrder < TaskerCore::BaseTaskHandler
    def validate_context(context)
      raise TaskerCore::ValidationError, "an order has items" if Array(context["items"]).empty?
    end
  end

  class Reserve < TaskerCore::BaseStepHandler
    def process(task, _sequence, _step)
      { count: task["items"].size, pid: Process.pid, at: Time.at(0, 123_456, :usec), typed: task["typed"],
        classes: task["typed"]&.transform_values { |value| value.class.name } }
    end

    def process_results(_step, output, _initial_results) = output.merge(hooked: true)
  end

  # Fails once.
  class Charge < TaskerCore::BaseStepHandler
    def process(task, _sequence, step)
      raise TaskerCore::RetryableError.new("the bank is busy", retry_after: 0.1) if step.attempt == 1
      raise TaskerCore::PermanentError.new("no such card", error_code: "no_card", context: { card: task["card"] }) if task["card"] == "none"

      { attempt: step.attempt, key: step.idempotency_key }
    end
  end

  # Says what it was given.
  class Ship < TaskerCore::BaseStepHandler
    def process(task, sequence, step)
      { task: { id: task.task_id, name: "#{task.namespace}/#{task.name}@#{task.version}", card: task["card"], frozen: task.context.frozen? },
        step: { name: step.name, attempt: step.attempt, last: step.last_attempt?, depends_on: step.depends_on, config: step.config,
                charged: step.results_of("charge")["key"] },
        reserved: sequence.find_step_by_name("reserve").results["count"] }
    end
  end
end
