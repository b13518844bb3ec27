# frozen_string_literal: true

require "json"

module TaskerCore
  # The heartbeat of one attempt. Beats that come quickly after one another are
  # kept in memory and sent once a second, or thrice per heartbeat_seconds of
  # the step; what is left is sent when the attempt fails.
  class Heartbeat
    MOST_BYTES = 65_536
    SECONDS = 1.0

    # @param longest [Numeric, nil] heartbeat_seconds of the step; nil: none are asked for
    # @param secret [Integer, nil] of the attempt's start
    def initialize(step_id, attempt, longest, protocol:, secret: nil, logger: TaskerCore.logger)
      @step_id = step_id
      @attempt = attempt
      @secret = secret
      @pause = longest ? [SECONDS, longest / 3.0].min : SECONDS
      @protocol = protocol
      @logger = logger
      @mutex = Mutex.new # a handler may beat from threads of its own
      @current = true
    end

    # @param progress [Object] JSON values; nil: only a sign of life
    # @return [Boolean] false: the attempt is over
    # @raise [ProgressRefusedError]
    def beat(progress)
      document = progress.nil? ? nil : document(progress)
      @mutex.synchronize do
        @waiting = document if document
        send_now if @sent_at.nil? || now - @sent_at >= @pause
        @current
      end
    end

    # @return [Boolean] false: the attempt is over
    def current? = beat(nil)

    # Sends what waits. Best effort: the attempt has other things to report.
    def flush
      @mutex.synchronize { send_now if @waiting }
    rescue ProgressRefusedError => e
      @logger.warn { "tasker: progress of step #{@step_id} attempt #{@attempt} is lost: #{e.message}" }
    end

    private

    # A heart that can't reach Postgres for a moment stops no handler: if it
    # lasts, the engine takes the attempt back.
    def send_now
      waiting = @waiting
      @waiting = nil
      @sent_at = now
      @current = @protocol.heartbeat(@step_id, @attempt, waiting, @secret)
    rescue DatabaseError => e
      raise ProgressRefusedError, "Postgres doesn't take the progress: #{e.message}" if e.refuses_data?

      @waiting ||= waiting
      @logger.warn { "tasker: heartbeat of step #{@step_id} attempt #{@attempt} did not reach Postgres: #{e.message}" }
    end

    def document(progress)
      JSON.generate(JsonTree.build(progress), max_nesting: 0).tap do |text|
        next if text.bytesize <= MOST_BYTES

        raise ProgressRefusedError, "the progress has #{text.bytesize} bytes, at most #{MOST_BYTES} are kept: store the data and carry a reference"
      end
    rescue JsonTree::Refused => e
      raise ProgressRefusedError, "the progress is not JSON: #{e.message}"
    end

    def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)
  end
end
