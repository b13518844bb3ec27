# frozen_string_literal: true

module TaskerCore
  module Testing
    # A clock that a test sets ahead.
    class Clock
      # @param start [#call, nil] gives the time that it goes on from; nil: the machine's
      def initialize(start = nil)
        @start = start || -> { Time.now }
        @ahead = 0
      end

      # @return [Rational, Numeric] seconds that it was set ahead
      attr_reader :ahead

      # @return [Time] UTC
      def now = (@start.call + @ahead).utc

      # @param seconds [Numeric, ActiveSupport::Duration]
      # @raise [InputError] time goes forward only
      def advance(seconds)
        number = self.class.seconds(seconds)
        raise InputError, "time goes forward only: #{seconds.inspect} is no number of seconds from 0" unless number

        @ahead += number
      end

      # @return [Rational, nil] exact: many small steps add up; nil: no such number
      def self.seconds(value)
        return unless value.is_a?(Numeric) && value.real? && value.to_f.finite? && !value.negative?

        value.to_f.rationalize(Rational(1, 1_000_000_000))
      end
    end
  end
end
