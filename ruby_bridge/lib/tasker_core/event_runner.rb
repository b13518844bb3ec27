# frozen_string_literal: true

require "securerandom"
require "socket"

module TaskerCore
  # Runs the subscribers of this process: a worker for each. Of one name, one
  # process reads at a time; the others stand by.
  class EventRunner
    # Three times within the 5 seconds for which a subscriber is held.
    RENEW_SECONDS = 1.5

    # @param listener [Listener]
    def initialize(listener)
      @listener = listener
      @holder = "#{Socket.gethostname}:#{Process.pid}:#{SecureRandom.hex(6)}"
      @workers = {}
      @mutex = Mutex.new
      @renew_at = now
      @listener.add("events", self)
    end

    # @param subscription [EventSubscription]
    # @return [void]
    def start(subscription)
      @mutex.synchronize do
        return if @workers.key?(subscription.name)

        @workers = @workers.merge(subscription.name => EventWorker.new(subscription, holder: @holder, channel: @listener.channel).tap(&:start))
      end
      @listener.ring
    end

    # @param names [Array<String>]
    # @param timeout [Numeric] seconds for the events that are being handled
    # @return [void]
    def stop(names = @workers.keys, timeout: 20)
      stopping = @mutex.synchronize do
        chosen = @workers.slice(*names)
        @workers = @workers.except(*names)
        chosen.values
      end
      stopping.each(&:ask_to_stop)
      deadline = now + timeout
      late = stopping.reject { |worker| worker.join([deadline - now, 0].max) }
      return if late.empty?

      TaskerCore.config.logger.warn { "tasker: still handling an event, left behind: subscriber #{late.map { |worker| worker.subscription.name }.join(', ')}" }
    end

    # In the child of a fork, which is another process.
    def discard = @workers.each_value(&:discard)

    # @private
    def due_in = (@renew_at - now if @workers.any?)

    # @private A handler may take as long as it likes.
    def look(protocol)
      @renew_at = now + RENEW_SECONDS
      @workers.each_value.select(&:holding?).each do |worker|
        worker.lost unless protocol.hold_subscriber(worker.subscription.name, @holder)
      end
    end

    # @private
    def heard(name) = @workers[name]&.wake

    # @private
    def reconnected = @workers.each_value(&:wake)

    private

    def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)
  end
end
