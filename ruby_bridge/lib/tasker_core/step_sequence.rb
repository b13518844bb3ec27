# frozen_string_literal: true

module TaskerCore
  # The steps of the task, seen from the one that is being run.
  #
  #   sequence.find_step_by_name("reserve_inventory").results["reservation"]
  #   sequence.results_of(:fraud_check)
  #
  # Results of direct dependencies are here from the start. Any other step, and
  # the state of a dependency, is read from tasker.steps when it is asked for,
  # once: what is not a dependency may still be moving.
  class StepSequence
    # Another step of the task.
    class Step
      # @return [String]
      attr_reader :name
      # @return [Object, nil] JSON value, frozen; nil when it has none
      attr_reader :results

      # @param state [#call] gives the state
      def initialize(name, results, state)
        @name = name.dup.freeze
        @results = DeepFreeze.call(results)
        @state = state
        freeze
      end

      # @return [String] such as "complete" or "skipped"
      # @raise [DatabaseError]
      def state = @state.call

      def inspect = "#<#{self.class} #{name}>"
    end

    # @param task_id [Integer]
    # @param dependencies [Hash{String => Object}] member "dependencies" of contract/start_attempt.json
    # @param protocol [Protocol] for what has to be read
    def initialize(task_id, dependencies, protocol: TaskerCore.protocol)
      @task_id = task_id
      @protocol = protocol
      @steps = dependencies.to_h { |name, results| [name, Step.new(name, results, -> { states.fetch(name) })] }
      @dependencies = @steps.dup.freeze
    end

    # @return [Hash{String => Step}] the direct dependencies
    attr_reader :dependencies

    # @param name [String, Symbol]
    # @return [Step]
    # @raise [KeyError] when the task has no such step; it says which it has
    # @raise [DatabaseError]
    def find_step_by_name(name) = find(name.to_s) || raise(no_step(name.to_s))
    alias [] find_step_by_name

    # @param name [String, Symbol]
    # @return [Boolean] whether the task has such a step, as not every version of its template may
    # @raise [DatabaseError]
    def step?(name) = !find(name.to_s).nil?

    # @param name [String, Symbol]
    # @return [Object, nil]
    # @raise [KeyError] when the task has no such step; it says which it has
    # @raise [DatabaseError]
    def results_of(name) = find_step_by_name(name).results

    def inspect = "#<#{self.class} of task #{@task_id}: #{dependencies.keys.join(', ')}>"

    private

    def find(name) = @steps.fetch(name) { @steps[name] = read(name) }

    def no_step(name)
      KeyError.new("the task has no step #{name.inspect}#{NearNames.hint(name, @protocol.names_of_steps(@task_id))}", receiver: self, key: name)
    end

    def states
      @states ||= @protocol.states_of_steps(@task_id, dependencies.keys).each_value(&:freeze).freeze
    end

    def read(name)
      state, results = @protocol.step_of_task(@task_id, name)
      Step.new(name, results, -> { state }) if state
    end
  end
end
