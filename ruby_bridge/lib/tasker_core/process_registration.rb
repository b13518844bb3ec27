# frozen_string_literal: true

require "securerandom"
require "socket"

module TaskerCore
  # Tells Postgres that this process lives. When the beats stop for 10 seconds,
  # the attempts that run here count as lost and run again elsewhere.
  #
  # It beats on a thread and a connection of its own: jobs that hold all others
  # must not make the process look dead.
  class ProcessRegistration
    BEAT_SECONDS = 2
    # After a beat that failed.
    MISSED_SECONDS = 0.5

    # @param connection [Connection]
    def initialize(connection = Connection.new(DatabaseParameters.method(:current)))
      @connection = connection
      @protocol = Protocol.new(connection)
      @mutex = Mutex.new
      @wake = ConditionVariable.new
      @forsaken = []
      @secret = SecureRandom.random_number(10**18)
    end

    # Registers on the first call. When beats were missed, this is one: Postgres
    # may have been away for so long that the process counts as dead, and what it
    # starts then would be lost at once, time and again.
    #
    # @return [Integer] the process's number, for start_attempt
    # @raise [DatabaseError]
    def id
      known = @id
      TaskerCore.protocol.process_beat(known, TaskerCore.handler_times.to_h, @secret) if known && @silent
      @id || @mutex.synchronize { @id || start }
    end

    # Reports an attempt as lost, when Postgres is back. For one that nobody
    # runs any more, and that would otherwise look alive as long as the process
    # is.
    #
    # @param secret [Integer, nil] of the call that has started it, or may have
    def forsake(step_id, attempt, secret = nil)
      @mutex.synchronize { @forsaken << Report.lost(step_id, attempt, secret) }
    end

    # Leaves politely: what is done is reported, and what still runs here
    # Postgres gives away at once.
    def stop
      left = TaskerCore.reports.drain(TaskerCore.config.stop_timeout)
      logger.warn { "tasker: #{left} reports could not be sent before the process ends; their steps run again" } if left.positive?
      thread = @mutex.synchronize do
        @stopping = true
        @wake.broadcast
        @thread
      end
      thread&.join(2 * BEAT_SECONDS)
    end

    # In the child of a fork, which is another process.
    def discard = @connection.discard

    private

    def start
      @id = register
      @stopping = false
      @thread = Thread.new { live }
      @thread.name = "tasker heartbeat"
      # Not Sidekiq's shutdown event: it comes before the running jobs are done.
      pid = Process.pid
      @farewell ||= at_exit { stop if Process.pid == pid } || true
      @id
    end

    def live
      beat while sleep_until_next_beat
      leave
    end

    # @return [Boolean] false: the process stops
    def sleep_until_next_beat
      @mutex.synchronize do
        @wake.wait(@mutex, @silent ? [MISSED_SECONDS, BEAT_SECONDS].min : BEAT_SECONDS) unless @stopping
        !@stopping
      end
    end

    # A lost connection is no reason to register again: the attempts that run
    # here are bound to the number they started with.
    def beat
      @id = register unless @protocol.process_beat(@id, TaskerCore.handler_times.to_h, @secret)
      report_forsaken
      logger.info { "tasker: process #{@id} beats again" } if @silent
      @silent = false
    rescue StandardError => e
      logger.warn { "tasker: process #{@id} misses its heartbeat: #{e.message}" } unless @silent
      @silent = true
    end

    def report_forsaken
      reports = @mutex.synchronize { @forsaken.dup }
      return if reports.empty?

      # Not waiting: a heart that stands still for 10 seconds is dead.
      held = reports.zip(@protocol.report_free(reports)).filter_map { |report, answer| report if answer == :held }
      @mutex.synchronize { @forsaken = held + @forsaken.drop(reports.size) }
    end

    def leave
      @protocol.process_stopped(@id, @secret)
    rescue StandardError => e
      logger.warn { "tasker: process #{@id} could not say that it stops: #{e.message}" }
    ensure
      @id = nil
      @connection.close
    end

    def register
      id = @protocol.register_process(identity, details, @secret)
      logger.info { "tasker: registered as process #{id} (#{identity})" }
      id
    end

    # Sidekiq's own, where it has one: the same name in its Web UI and in tasker.processes.
    def identity
      settings = sidekiq_settings
      (settings && settings[:identity]) || (@identity ||= "#{Socket.gethostname}:#{Process.pid}:#{SecureRandom.hex(6)}")
    end

    def sidekiq_settings
      return unless Sidekiq.server?

      return Sidekiq.default_configuration if Sidekiq.respond_to?(:default_configuration) # from 7

      Sidekiq.respond_to?(:[]) ? Sidekiq : Sidekiq.options # 6.5, 6.4
    end

    # Each queue once, without its weight.
    def queues
      return capsules.flat_map(&:queues) if capsules

      sidekiq_settings&.[](:queues)
    end

    def concurrency
      return capsules.sum(&:concurrency) if capsules

      sidekiq_settings&.[](:concurrency)
    end

    # Groups of threads, from Sidekiq 7.
    def capsules
      settings = sidekiq_settings
      settings.capsules.values if settings.respond_to?(:capsules)
    end

    def details
      { hostname: Socket.gethostname, pid: Process.pid, concurrency:,
        queues: queues&.uniq,
        ruby: RUBY_VERSION, sidekiq: Sidekiq::VERSION, tasker_core: VERSION }.compact
    end

    def logger = TaskerCore.config.logger
  end
end
