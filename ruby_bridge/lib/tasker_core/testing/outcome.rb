# frozen_string_literal: true

module TaskerCore
  module Testing
    # What became of one attempt. Frozen, all the way down.
    class Outcome
      # @return [Object, nil] the result as it would be stored, JSON values; nil of a failure
      attr_reader :result
      # @return [Hash{String => Object}, nil] the failure as it would be stored: "class", "message", "backtrace",
      #   "cause", "code", "permanent", "retry_after", "context", where there are such; nil of a success
      attr_reader :error
      # @return [Exception, nil] what the handler raised
      attr_reader :exception
      # @return [Array<Object, nil>] what each step.heartbeat! carried, as it would be stored
      attr_reader :heartbeats
      # @return [Object, nil] what the next attempt finds in step.progress
      attr_reader :progress
      # @return [Numeric, nil] seconds that the failure asks to wait; nil: it asks for nothing that can be read
      attr_reader :retry_after

      # @private
      def initialize(result: nil, error: nil, exception: nil, heartbeats: [], progress: nil, now: Time.now)
        @result = result
        @error = DeepFreeze.call(error)
        @exception = exception
        @heartbeats = heartbeats.dup.freeze
        @progress = heartbeats.compact.last || progress
        @retry_after = error && RetryPolicy.seconds(error["retry_after"], now)
        freeze
      end

      # @return [Boolean]
      def success? = error.nil?

      # @return [Boolean]
      def failure? = !success?

      # @return [Boolean] whether it failed so that no further attempt can help
      def permanent? = failure? && error["permanent"] == true

      # @return [Boolean] whether it failed, and another attempt may follow if the step has one left
      def retryable? = failure? && !permanent?

      # @return [String, nil] a word for programs, such as "card_declined"
      def code = error && error["code"]

      # @return [String] in words, for messages of failing tests
      def to_s
        return "succeeded with #{result.inspect}" if success?

        kind = permanent? ? "failed for good" : "failed"
        asked = ", to be tried again after #{retry_after} s" if retry_after
        lines = Array(error["backtrace"]).reject { |line| line.include?("/lib/tasker_core/") }.first(3)
        where = "\n  #{lines.join("\n  ")}" if lines.any?
        "#{kind} with #{error['class']}#{" (code #{code})" if code}: #{error['message']}#{asked}#{where}"
      end

      def inspect = "#<#{self.class} #{self}>"
    end
  end
end
