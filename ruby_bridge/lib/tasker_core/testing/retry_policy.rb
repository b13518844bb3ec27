# frozen_string_literal: true

require "time"

module TaskerCore
  module Testing
    # When the next attempt begins: the engine's rules (docs/templates.md),
    # without jitter, so that a test knows the time.
    RetryPolicy = Struct.new(:backoff, :base, :cap, :retry_after_cap) do
      const_set :SECONDS, /\A\s*[-+]?(\d+\.?|\d*\.\d+)([eE][-+]?\d+)?\s*\z/

      # @param used [Integer] attempts that are used up
      # @return [Numeric] seconds
      def delay(used)
        growth = case backoff
                 when "none" then 0
                 when "fixed" then 1
                 when "linear" then used
                 when "fibonacci" then fibonacci(used)
                 else 2**[used - 1, 64].min # a year of seconds has 25 bits
                 end
        [base * growth, cap].min
      end

      # @param asked [Numeric, String, nil] retry_after of a failure
      # @return [Numeric, nil] seconds; nil: there is no wish that can be read, or none is granted
      def asked_delay(asked, now)
        seconds = self.class.seconds(asked, now)
        [seconds, retry_after_cap].min if seconds && retry_after_cap.positive?
      end

      # @param asked [Numeric, String, nil] seconds, or the text of a Retry-After header
      # @return [Numeric, nil] from now on
      def self.seconds(asked, now)
        case asked
        when Numeric then [asked, 0].max
        when self::SECONDS then [asked.to_f, 0].max
        when String then http_date(asked.strip, now)
        end
      end

      def self.http_date(text, now)
        [Time.httpdate(text) - now, 0].max
      rescue ArgumentError
        nil
      end

      private

      def fibonacci(number)
        before = 0
        current = 1
        [number - 1, 100].min.times { before, current = current, before + current }
        current
      end
    end
  end
end
