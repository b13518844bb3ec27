# frozen_string_literal: true

module TaskerCore
  # Reads the events of one subscriber, on a thread and a connection of its own,
  # and has them handled one after the other. What it knows is in Postgres: it
  # may die at any point, and another goes on at the last cursor.
  class EventWorker
    BATCH = 1000
    # After so many looks in vain; from the second on, the next event rings.
    PAUSES_SECONDS = [0.005, 0.005, 0.02, 0.1, 0.5].freeze
    LONGEST_PAUSE_SECONDS = 2
    # Between two tries to take over from another process.
    STANDBY_SECONDS = 1
    # Between two tries of a handler that fails: the first, doubled, up to the longest.
    FIRST_RETRY_SECONDS = 1
    LONGEST_RETRY_SECONDS = 60
    # What one pass through Rails' executor may take: its query cache, and the
    # reloader's lock, must not be held for a whole batch.
    SLICE_SECONDS = 0.05

    # @return [EventSubscription]
    attr_reader :subscription

    # @param subscription [EventSubscription]
    # @param holder [String] names this process
    # @param channel [String] of the Listener, which calls #wake
    # @param connection [Connection]
    def initialize(subscription, holder:, channel:, connection: Connection.new(DatabaseParameters.method(:current)))
      @subscription = subscription
      @holder = holder
      @channel = channel
      @connection = connection
      @protocol = EventProtocol.new(connection)
      @mutex = Mutex.new
      @wake = ConditionVariable.new
      @idle = 0
    end

    # @return [void]
    def start
      @thread = Thread.new { live }
      @thread.name = "tasker events #{name}"
    end

    # @return [Boolean] whether it reads, and not another process
    def holding? = @holding && @thread&.alive?

    # Another process has taken over: what is left of the batch is its to handle.
    def lost = @holding = false

    # There may be something to read.
    def wake
      @mutex.synchronize do
        @woken = true
        @wake.signal
      end
    end

    # Has it end after the event that is being handled.
    def ask_to_stop
      @mutex.synchronize do
        @stopping = true
        @wake.signal
      end
    end

    # @param seconds [Numeric]
    # @return [Boolean] whether it has ended, or is itself who asks
    def join(seconds) = @thread.nil? || @thread == Thread.current || !@thread.join(seconds).nil?

    # In the child of a fork, which is another process.
    def discard = @connection.discard

    private

    def name = @subscription.name

    def live
      attend until @stopping
    ensure
      leave
    end

    def attend
      @prepared ||= @protocol.subscribe(name, @subscription.catalogue_patterns, @subscription.from) || true
      turn
    rescue DatabaseError => e
      away(e)
    end

    def turn
      batch = @protocol.next_events(name, @holder, BATCH, acknowledged: @cursor, channel: (@channel if @idle.positive?))
      back
      @cursor = nil
      @holding = !batch.nil?
      return stand_by unless batch

      handle(batch)
    end

    def stand_by
      logger.info { "tasker: subscriber #{name} is held by another process; standing by" } unless @standing_by
      @standing_by = true
      pause STANDBY_SECONDS
    end

    def handle(batch)
      @standing_by = false
      if batch.rows.empty?
        # Passed over what it has not subscribed to.
        @cursor = batch.cursor unless batch.cursor == @last_cursor
        @last_cursor = batch.cursor
        @idle += 1
        return pause(PAUSES_SECONDS.fetch(@idle - 1, LONGEST_PAUSE_SECONDS))
      end

      @idle = 0
      events = batch.rows.map { |row| Event.new(row, @subscription.renamed) }
      done = deliver(events, batch.cursor)
      done == events.size ? @cursor = batch.cursor : acknowledge(batch.cursor, events, done)
    end

    # @return [Integer] how many were handled, or given up
    def deliver(events, cursor)
      done = 0
      while done < events.size && @holding && !@stopping
        handled, error = AppExecutor.wrap { handle_slice(events, done) }
        done += handled
        @failures = 0 if handled.positive?
        done += 1 if error && failed(events, done, cursor, error) == :skip
      end
      done
    end

    # @return [Array(Integer, Exception)] how many were handled, and what the next one raised
    def handle_slice(events, from)
      deadline = now + SLICE_SECONDS
      done = from
      while done < events.size
        @subscription.call(events[done])
        done += 1
        break if @stopping || !@holding || now > deadline
      end
      [done - from, nil]
    rescue *AttemptRun::FAILURES => e
      [done - from, e]
    end

    # In order: nothing that comes after the event is handled before it.
    def failed(events, done, cursor, error)
      event = events[done]
      @failures = @failures.to_i + 1
      report(event, error)
      if @subscription.on_error == :skip && @failures > @subscription.retries
        logger.error { "tasker: subscriber #{name} skips #{event.inspect}, which failed #{@failures} times" }
        @failures = 0
        return :skip
      end
      # What comes after a restart begins here, and people can see where it stands.
      acknowledge(cursor, events, done) if @failures == 1
      @protocol.event_failed(name, @holder, event.id, TaskerCore.config.secret_filter.text(CleanText.call("#{error.class}: #{error.message}")))
      pause [FIRST_RETRY_SECONDS * (2**[@failures - 1, 16].min), LONGEST_RETRY_SECONDS].min
    rescue DatabaseError => e
      away(e)
    end

    def report(event, error)
      logger.error do
        "tasker: subscriber #{name} failed at #{event.inspect} (try #{@failures}): #{error.message} (#{error.class})\n#{error.backtrace&.first(20)&.join("\n")}"
      end
      return unless defined?(Rails) && Rails.respond_to?(:error) # from Rails 7

      Rails.error.report(error, handled: true, context: { subscriber: name, event_id: event.id, event: event.name }, source: "tasker")
    end

    def acknowledge(cursor, events, done)
      @protocol.acknowledge_events(name, @holder, cursor, up_to: events[done - 1].id) if done.positive?
    end

    def leave
      @protocol.acknowledge_events(name, @holder, @cursor) if @cursor
      @protocol.release_subscriber(name, @holder) if @holding
    rescue DatabaseError => e
      logger.warn { "tasker: subscriber #{name} could not say that it stops: #{e.message}" }
    ensure
      @holding = false
      @connection.close
    end

    def away(error)
      logger.warn { "tasker: subscriber #{name} can't read its events, will try again: #{error.message}" } unless @away
      @away = true
      pause STANDBY_SECONDS
    end

    def back
      logger.info { "tasker: subscriber #{name} reads its events again" } if @away
      @away = false
    end

    def pause(seconds)
      @mutex.synchronize do
        @wake.wait(@mutex, seconds) unless @woken || @stopping
        @woken = false
      end
    end

    def logger = TaskerCore.config.logger

    def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)
  end
end
