# frozen_string_literal: true

require "json"

module TaskerCore
  # What travels with a task from who enqueues it to its handlers, and is no part of
  # what the task is about.
  module TaskCarrier
    module_function

    # @return [String, nil] JSON; nil: there is nothing to carry
    # @raise [TaskRefusedError] a value can't travel
    # @raise [ConfigurationError] a value can't be signed
    def to_json(namespace, name, config = TaskerCore.config)
      carried = { **TraceContext.carrier, **CurrentValues.carrier(namespace, name, config) }
      JSON.generate(carried, max_nesting: 0) if carried.any?
    end

    # @param task [TaskContext]
    # @return [Hash]
    def of(task) = (task.carrier_read? ? task.carrier : TaskerCore.protocol.carrier_of(task.task_id)) || {}
  end
end
