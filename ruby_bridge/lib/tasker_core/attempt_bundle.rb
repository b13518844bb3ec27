# frozen_string_literal: true

require "securerandom"

module TaskerCore
  # The attempts of one Sidekiq job: one, or several when work has piled up.
  # They are started by one call and run one after the other.
  #
  # The clocks of all of them run from that call. So one that waits behind others
  # for longer than PATIENCE_SECONDS is given up and runs elsewhere: the engine
  # bundles only what is expected to take milliseconds.
  class AttemptBundle
    PATIENCE_SECONDS = 1.0

    # @param attempts [Array<Array(Integer, Integer, Integer)>] step_id, attempt and ticket of each
    # @param handlers [Array<String>] the classes that they need
    def initialize(attempts, handlers: [], protocol: TaskerCore.protocol, reports: TaskerCore.reports, config: TaskerCore.config)
      @attempts = attempts
      @handlers = handlers
      @protocol = protocol
      @reports = reports
      @config = config
      @mutex = Mutex.new
      @runs = []
    end

    # @return [void]
    # @raise [DatabaseError] the attempts could not be started
    # @raise [Exception] what a handler raised
    def call
      # A Shutdown waits while a call to Postgres is under way, and comes
      # through in the handler and between tries.
      Thread.handle_interrupt(Sidekiq::Shutdown => :never) do
        missing = HandlerLookup.missing(@handlers)
        next give_back(missing) if missing

        start
        waiting? ? TaskerCore.bundle_watch.over(self) { run_all } : run_all
      ensure
        give_up_rest
      end
    end

    # @return [Boolean] whether attempts wait that should have begun by now
    def overdue? = waiting? && now - @began > PATIENCE_SECONDS

    # Gives up the attempts that have not begun: others run them.
    #
    # @return [Integer] how many
    def give_up_rest
      rest = @mutex.synchronize { @runs.slice!(0..) }
      rest.each(&:give_up)
      rest.size
    end

    private

    def start
      # The same for each try: what an earlier one has started is ours.
      @secret = SecureRandom.random_number(10**18)
      @began = now
      answers = Patience.new(seconds: @config.start_timeout, activity: "start #{self}", logger: @config.logger).persist do
        @protocol.start_attempts(@attempts, TaskerCore.process_registration.id, @secret)
      end
      @runs = answers.filter_map { |answer| run(answer) }
    rescue Exception => e # rubocop:disable Lint/RescueException -- whatever it was, they may have been started
      leave_to_heartbeat(e) unless e.is_a?(DatabaseError) && e.refuses_data?
      raise
    end

    # Others of the job may have their class here: the engine pushes them one by one then.
    def give_back(error)
      @protocol.handler_missing(@attempts, TaskerCore.process_registration.id)
      @config.logger.warn { "tasker: #{self} waits for a process that has its handler: #{error.message}" }
    end

    def run(answer)
      return AttemptRun.new(answer, protocol: @protocol, reports: @reports, config: @config) unless answer.refusal

      @config.logger.info { "tasker: step #{answer.step_id} attempt #{answer.attempt} not started: #{answer.refusal}" }
      nil
    end

    # Sidekiq hears of each error, and error trackers in its middleware of the last.
    def run_all
      errors = []
      while (run = take)
        errors << run.call
      end
      last = errors.compact.last
      errors.delete(last)
      raise last if last
    ensure
      errors.compact.each { |error| SidekiqErrors.handle(error) }
    end

    def take
      give_up_rest if overdue?
      @mutex.synchronize { @runs.shift }
    end

    def waiting? = @runs.any?

    def leave_to_heartbeat(error)
      @config.logger.error { "tasker: #{self} is left to the heartbeat, to be reported as lost: #{error.message}" }
      @attempts.each { |step_id, attempt| TaskerCore.process_registration.forsake(step_id, attempt, @secret) }
    end

    def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)

    def to_s = @attempts.map { |step_id, attempt| "step #{step_id} attempt #{attempt}" }.join(", ")
  end
end
