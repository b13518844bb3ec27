# frozen_string_literal: true

module TaskerCore
  # The attempts of one Sidekiq job: one, or several when work has piled up.
  # They are started by one call and run one after the other.
  class AttemptBundle
    # @param attempts [Array<Array(Integer, Integer)>] step_id and attempt of each
    def initialize(attempts, protocol: TaskerCore.protocol, reports: TaskerCore.reports, config: TaskerCore.config)
      @attempts = attempts
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
        @runs = start
        surface(@runs.size > 1 ? TaskerCore.bundle_watch.over(self) { run_all } : run_all)
      ensure
        give_up_rest
      end
    end

    # @return [Float, nil] when the attempt began that others wait for; nil: none waits
    attr_reader :waiting_since

    # Gives up the attempts that have not begun: others run them.
    def give_up_rest
      rest = @mutex.synchronize { @runs.slice!(0..) }
      rest.each(&:give_up)
      rest.size
    end

    private

    def start
      # The same for each try: what an earlier one has started is ours.
      call_id = rand(1 << 62)
      answers = Patience.new(seconds: @config.start_timeout, activity: "start #{self}", logger: @config.logger).persist do
        @protocol.start_attempts(@attempts, TaskerCore.process_registration.id, call_id)
      end
      @attempts.zip(answers).filter_map { |(step_id, attempt), answer| run(step_id, attempt, answer) }
    rescue DatabaseError => e
      leave_to_heartbeat(e) unless e.refuses_data?
      raise
    end

    def run(step_id, attempt, answer)
      return AttemptRun.new(step_id, attempt, answer, protocol: @protocol, reports: @reports, config: @config) if answer["status"] == "started"

      @config.logger.info { "tasker: step #{step_id} attempt #{attempt} not started: #{answer['reason']}" }
      nil
    end

    # @return [Array<Exception>]
    def run_all
      errors = []
      while (run = take)
        errors << run.call
      end
      errors.compact
    end

    def take
      @mutex.synchronize do
        run = @runs.shift
        @waiting_since = @runs.empty? ? nil : Process.clock_gettime(Process::CLOCK_MONOTONIC)
        run
      end
    end

    # Sidekiq hears of each error, and error trackers in its middleware of the last.
    def surface(errors)
      *others, last = errors
      others.each { |error| SidekiqErrors.handle(error) }
      raise last if last
    end

    def leave_to_heartbeat(error)
      @config.logger.error { "tasker: #{self} is left to the heartbeat, to be reported as lost: #{error.message}" }
      @attempts.each { |step_id, attempt| TaskerCore.process_registration.forsake(step_id, attempt) }
    end

    def to_s = @attempts.map { |step_id, attempt| "step #{step_id} attempt #{attempt}" }.join(", ")
  end
end
