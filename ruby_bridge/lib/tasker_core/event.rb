# frozen_string_literal: true

require "json"

module TaskerCore
  # Something that happened, as a subscriber gets it. Frozen, all the way down.
  class Event
    # @return [Integer] the same whenever the event is delivered again
    attr_reader :id
    # @return [String] such as "task.completed"; see EventNames
    attr_reader :name
    # @return [String] the name in tasker.events
    attr_reader :catalogue_name
    # @return [Integer, nil] nil: of no task, such as gate.paused
    attr_reader :task_id
    # @return [Integer, nil] nil: of the task as a whole
    attr_reader :step_id, :attempt
    # @return [Integer, nil] the task whose step enqueued this one
    attr_reader :parent_task_id
    # @return [String, nil]
    attr_reader :namespace, :task_name, :task_version, :step_name, :correlation_id

    # @param row [Array] of EventProtocol#next_events
    # @param renamed [Hash{String => String}] of EventNames.renamed
    def initialize(row, renamed)
      @id, @microseconds, name, @task_id, @step_id, @attempt, @json, namespace, task_name, version, step, @correlation_id, @parent_task_id = row
      # The same few texts again and again: kept once.
      @catalogue_name = -name
      @name = renamed.fetch(@catalogue_name, @catalogue_name)
      @namespace = namespace && -namespace
      @task_name = task_name && -task_name
      @task_version = version && -version
      @step_name = step && -step
      @correlation_id&.freeze
      @made = {} # of what is dear to make: when it is asked for
      freeze
    end

    # @return [Integer] of what the engine's events carry: within a version fields are added, and none goes or changes its meaning
    def version = 1

    # @return [Time] when its transaction began; UTC, microseconds
    def occurred_at = @made[:occurred_at] ||= Time.at(@microseconds / 1_000_000, @microseconds % 1_000_000, :microsecond).utc.freeze

    # @return [Hash{String => Object}] JSON values: what the event carries, and
    #   beside it, as far as there are any, task_id, step_id, step_name,
    #   attempt, namespace, task_name and correlation_id. These are the engine's,
    #   also where the event carries others of the same name
    def data = @made[:data] ||= build_data

    # @return [Hash{Symbol => Object}]
    def to_h
      { id:, name:, catalogue_name:, occurred_at:, task_id:, step_id:, step_name:, attempt:, namespace:, task_name:, task_version:,
        correlation_id:, parent_task_id:, data: }
    end

    def inspect = "#<#{self.class} #{id} #{name}#{" of task #{task_id}" if task_id}#{" step #{step_name}" if step_name}>"

    private

    def build_data
      data = {}
      data["task_id"] = @task_id if @task_id
      data["step_id"] = @step_id if @step_id
      data["step_name"] = @step_name if @step_name
      data["attempt"] = @attempt if @attempt
      data["namespace"] = @namespace if @namespace
      data["task_name"] = @task_name if @task_name
      data["correlation_id"] = @correlation_id if @correlation_id
      add_own(data, JSON.parse(@json, max_nesting: false)) if @json
      data.freeze
    end

    # The engine's members win: any login that publishes events chooses the event's own,
    # and a subscriber acts on the task that the members name.
    def add_own(data, own)
      return data["value"] = DeepFreeze.call(own) unless own.is_a?(Hash)

      data.update(DeepFreeze.call(own)) { |_name, engine, _own| engine }
      data["delay"] = data["delay_seconds"] if @catalogue_name == "workflow.task_reenqueue_delayed"
    end
  end
end
