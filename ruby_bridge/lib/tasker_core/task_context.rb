# frozen_string_literal: true

require "time"

module TaskerCore
  # The task that a step belongs to, as it was when the attempt started.
  # Frozen, all the way down.
  class TaskContext
    # @return [Integer]
    attr_reader :task_id
    # @return [String]
    attr_reader :namespace, :name, :version
    # @return [Hash{String => Object}] JSON values
    attr_reader :context
    # @return [Integer] 1 (goes first) to 4
    attr_reader :priority
    # @return [String, nil]
    attr_reader :correlation_id, :initiator, :source_system, :reason
    # @return [Integer, nil] the task whose step enqueued this one
    attr_reader :parent_task_id
    # @return [Array<String>]
    attr_reader :tags

    # @return [Hash{String => Object}, nil] what travels with the task beside its context
    attr_reader :carrier

    # @param answer [Hash] member "task" of contract/start_attempt.json
    def initialize(answer)
      @task_id, @namespace, @name, @version = answer.fetch_values("task_id", "namespace", "name", "version")
      @context = answer["context"] || {}
      @priority = answer["priority"]
      @correlation_id = answer["correlation_id"]
      @parent_task_id = answer["parent_task_id"]
      @tags = answer["tags"] || []
      @initiator = answer["initiator"]
      @source_system = answer["source_system"]
      @reason = answer["reason"]
      @carrier = answer["carrier"]
      @carrier_read = answer.key?("carrier")
      @created_at = answer.fetch("created_at")
      instance_variables.each { |name| DeepFreeze.call(instance_variable_get(name)) }
      freeze
    end

    # @private
    # @return [Boolean] whether the answer said what the task carries; else Protocol#carrier_of does
    def carrier_read? = @carrier_read

    # @return [Time] UTC, microseconds
    def created_at
      # Read when asked for: few handlers do, and it takes long.
      Time.iso8601(@created_at).utc
    end

    # @param key [String, Symbol]
    # @return [Object, nil] a member of the context
    def [](key) = context[key.to_s]

    # @param path [Array<String, Symbol, Integer>]
    # @return [Object, nil] a value inside the context
    def dig(*path) = context.dig(*path.map { |key| key.is_a?(Symbol) ? key.name : key })

    def inspect = "#<#{self.class} #{namespace}/#{name}@#{version} #{task_id}>"
  end
end
