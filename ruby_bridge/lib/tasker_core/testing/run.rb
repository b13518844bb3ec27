# frozen_string_literal: true

module TaskerCore
  module Testing
    # What became of a task. Frozen.
    class Run
      # An attempt. +at+: seconds after the task began; +outcome+: nil while it is
      # out; +delay+: seconds until the next one, or nil; +state+: of its step afterwards.
      Attempt = Struct.new(:step, :number, :at, :outcome, :delay, :state, keyword_init: true)
      # A step. +result+ and +error+ as they would be stored.
      Step = Struct.new(:name, :state, :attempts, :result, :error, keyword_init: true)
      # A transition, named as in tasker.events. +at+: seconds after the task began.
      Event = Struct.new(:name, :step, :attempt, :at, keyword_init: true)

      # @return [String] namespace/name@version
      attr_reader :template
      # @return [String] "complete" or "error"; of a System any state of a task
      attr_reader :state
      # @return [Hash, nil] as in tasker.tasks.error: "message", "steps", of a deadline "code"
      attr_reader :error
      # @return [Hash{String => Step}] in the order of the template
      attr_reader :steps
      # @return [Array<Attempt>] in the order in which they ended
      attr_reader :attempts
      # @return [Array<Event>]
      attr_reader :events
      # @return [Numeric] seconds that it would have taken, delays included
      attr_reader :elapsed

      # @private
      def initialize(members)
        members.each { |name, value| instance_variable_set(:"@#{name}", value) }
        DeepFreeze.call(@error)
        @steps.each_value { |step| [step.attempts, step].each(&:freeze) }
        [@steps, @attempts, @events, *@attempts, *@events].each(&:freeze)
        freeze
      end

      # @return [Boolean]
      def complete? = state == "complete"

      # @return [Boolean]
      def failed? = %w[error cancelled].include?(state)

      # @param name [String, Symbol]
      # @return [Step]
      # @raise [KeyError]
      def [](name) = steps.fetch(name.to_s)

      # @return [Array<String>] names of the steps that completed
      def completed_steps = steps.each_value.select { |step| step.state == "complete" }.map(&:name)

      # @return [String] in words, for messages of failing tests
      def to_s
        lines = steps.each_value.map do |step|
          last = step.error && ": #{step.error['class']}: #{step.error['message']}"
          "  #{step.name}: #{step.state} after #{step.attempts.length} #{step.attempts.one? ? 'attempt' : 'attempts'}#{last}"
        end
        ["#{template} is #{state} after #{elapsed} s#{" (#{error['message']})" if error}", *lines].join("\n")
      end

      def inspect = "#<#{self.class} #{self}>"
    end
  end
end
