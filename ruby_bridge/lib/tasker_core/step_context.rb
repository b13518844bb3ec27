# frozen_string_literal: true

module TaskerCore
  # The step that is being run, and this attempt at it. Frozen, all the way down.
  class StepContext
    # @return [Integer]
    attr_reader :step_id
    # @return [String]
    attr_reader :name, :handler_class
    # @return [String] the same for every attempt, another in every other database: pass
    #   it to the service that you call, so that a second attempt doesn't charge twice. After
    #   tasker task retry --context it is another, as what is asked for is
    attr_reader :idempotency_key
    # @return [Integer] number of this attempt, from 1; every try counts
    attr_reader :attempt
    # @return [Integer] attempts that count against the limit, this one
    #   included; those lost with a process don't
    attr_reader :attempts_used
    # @return [Integer]
    attr_reader :attempt_limit
    # @return [Hash{String => Object}] the template's handler_config
    attr_reader :config
    # @return [Numeric, nil] seconds that the attempt may take; nil: no limit
    attr_reader :timeout
    # @return [Numeric, nil] seconds that may lie between two heartbeats; nil: none are asked for
    attr_reader :heartbeat_seconds
    # @return [Object, nil] JSON that the last heartbeat of an earlier attempt
    #   carried: go on from there
    attr_reader :progress
    # @return [Array<String>] names of the direct dependencies
    attr_reader :depends_on
    # @return [Hash{String => Object}] what the task is about: its context
    attr_reader :inputs
    # @return [Hash{String => Object}] results of the direct dependencies by
    #   name; nil for one that was skipped
    attr_reader :dependencies

    # @param answer [Hash] member "step" of contract/start_attempt.json
    # @param inputs [Hash] the task's context
    # @param dependencies [Hash] member "dependencies"
    # @param heartbeat [Heartbeat, nil] nil, in a test of a handler: heartbeats go nowhere
    def initialize(answer, inputs: {}, dependencies: {}, heartbeat: nil)
      @step_id, @name, @handler_class, @attempt, @idempotency_key = answer.fetch_values("step_id", "name", "handler_class", "attempt", "idempotency_key")
      @attempts_used = answer["attempts_used"]
      @attempt_limit = answer["attempt_limit"]
      @config = answer["config"] || {}
      @timeout = answer["timeout_seconds"]
      @heartbeat_seconds = answer["heartbeat_seconds"]
      @progress = answer["progress"]
      @depends_on = answer["depends_on"] || []
      @inputs = inputs
      @dependencies = dependencies
      instance_variables.each { |name| DeepFreeze.call(instance_variable_get(name)) }
      @heartbeat = heartbeat
      freeze
    end

    # @return [nil] a step has no results until one of its attempts succeeds;
    #   here for handlers that look before they work
    def results = nil

    # @param name [String, Symbol] of a direct dependency; StepSequence has the other steps
    # @return [Object, nil] JSON value
    # @raise [KeyError] the step doesn't depend on it
    def results_of(name)
      dependencies.fetch(name.to_s) do
        raise KeyError.new("step #{self.name} does not depend on #{name}#{NearNames.hint(name, dependencies.keys)}; " \
                           "sequence.results_of reads any step of the task", receiver: self, key: name)
      end
    end

    # @return [Boolean] whether the step fails for good when this attempt does
    def last_attempt? = attempts_used >= attempt_limit

    # Says that this attempt gets on, and keeps how far it has come. A step with
    # heartbeat_seconds fails when none comes for that long. Cheap: call it as
    # often as you like.
    #
    #   rows.each_slice(1000).with_index(step.progress.to_i) { |slice, n| import(slice); step.heartbeat!(n + 1) }
    #
    # @param progress [Object] JSON values, up to 64 KiB; nil: as it was
    # @return [void]
    # @raise [AttemptOverError] nothing that the attempt still does will count: stop
    # @raise [ProgressRefusedError]
    def heartbeat!(progress = nil)
      return if @heartbeat.nil? || @heartbeat.beat(progress)

      raise AttemptOverError, "attempt #{attempt} of step #{step_id} (#{name}) is over: it was cancelled, timed out, or taken for lost"
    end

    # @return [Boolean] whether this attempt is over, so that nothing it still does will count
    def cancelled? = !@heartbeat.nil? && !@heartbeat.current?

    def inspect = "#<#{self.class} #{name} #{step_id}, attempt #{attempt}>"
  end
end
