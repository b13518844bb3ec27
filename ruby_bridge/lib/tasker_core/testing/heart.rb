# frozen_string_literal: true

module TaskerCore
  module Testing
    # The heartbeat of an attempt in a test: it keeps what was said, and knows by
    # the test's clock whether the attempt's time is over.
    class Heart < Heartbeat
      # @return [Array<Object, nil>] what each heartbeat carried
      attr_reader :beats

      # @param step [Hash] member "step" of contract/start_attempt.json
      # @param clock [Clock]
      def initialize(step, clock)
        super(*step.values_at("step_id", "attempt", "heartbeat_seconds"), protocol: nil)
        @timeout, @longest = step.values_at("timeout_seconds", "heartbeat_seconds")
        @clock = clock
        @started = @beaten = clock.now
        @beats = []
      end

      # @return [Boolean] false: the attempt is over
      def beat(progress)
        kept = progress.nil? ? nil : StoredJson.read(document(progress))
        @mutex.synchronize { @beats << kept }
        current?
      end

      # @return [Boolean] false: the attempt is over
      def current? = overdue.nil?.tap { |alive| @beaten = @clock.now if alive }

      # @return [Hash, nil] the failure of an attempt whose time is up
      def overdue
        return @overdue if @overdue

        ends = [[@timeout && (@started + @timeout), "attempt_timeout", "no result within #{@timeout} s"],
                [@longest && (@beaten + @longest), "heartbeat_timeout", "no heartbeat within #{@longest} s"]]
        _, code, message = ends.select { |at,| at && at < @clock.now }.min_by(&:first) # what is up first tells the story
        @overdue = code && { "class" => code, "code" => code, "message" => message }
      end
    end
  end
end
