# frozen_string_literal: true

module TaskerCore
  # Repeats a call while Postgres is away: 0.1 s, doubled, up to 5 s, each
  # ±25 % so that many processes don't come back in step.
  class Patience
    FIRST_DELAY = 0.1
    LONGEST_DELAY = 5

    # @param delay [Numeric, nil] the last one; nil: there was none
    # @return [Numeric] seconds
    def self.next_delay(delay) = delay ? [delay * 2, LONGEST_DELAY].min : FIRST_DELAY

    # @return [Float] seconds
    def self.scatter(delay) = delay * rand(0.75..1.25)

    # @param seconds [Numeric] after which the last error is raised
    # @param activity [String] for the log, such as "report step 7"
    def initialize(seconds:, activity:, logger: TaskerCore.config.logger)
      @seconds = seconds
      @activity = activity
      @logger = logger
    end

    # @yield [repeated] whether an earlier try may have been carried out unseen
    # @raise [DatabaseError]
    def persist
      deadline = now + @seconds
      delay = self.class.next_delay(nil)
      unanswered = false
      begin
        yield unanswered
      rescue DatabaseError => e
        unanswered ||= e.unanswered?
        raise if e.refuses_data? || now + delay > deadline

        @logger.warn { "tasker: cannot #{@activity} yet: #{e.message}" }
        wait self.class.scatter(delay)
        delay = self.class.next_delay(delay)
        retry
      end
    end

    private

    # Sidekiq gives a job three seconds after its Shutdown: it must get
    # through here, where nothing is under way.
    def wait(seconds)
      Thread.handle_interrupt(Sidekiq::Shutdown => :immediate) { sleep seconds }
    end

    def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)
  end
end
