# frozen_string_literal: true

module TaskerCore
  # Sees to it that no attempt waits long behind another of its job. The engine
  # bundles only attempts that are expected to be short; should one take long
  # all the same, those behind it are given up and run elsewhere.
  class BundleWatch
    EVERY_SECONDS = 0.25

    def initialize(logger: TaskerCore.config.logger)
      @logger = logger
      @mutex = Mutex.new
      @arrived = ConditionVariable.new
      @bundles = {}.compare_by_identity
    end

    # @param bundle [AttemptBundle]
    # @yield while it is watched
    # @return [Object] what the block returns
    def over(bundle)
      @mutex.synchronize do
        @bundles[bundle] = true
        start
        @arrived.signal
      end
      yield
    ensure
      @mutex.synchronize { @bundles.delete(bundle) }
    end

    private

    def start
      return if @thread&.alive?

      @thread = Thread.new { work }
      @thread.name = "tasker bundles"
    end

    def work
      loop do
        @mutex.synchronize { @arrived.wait(@mutex) while @bundles.empty? }
        sleep EVERY_SECONDS
        look
      end
    end

    def look
      @mutex.synchronize { @bundles.keys }.select(&:overdue?).each do |bundle|
        count = bundle.give_up_rest
        @logger.info { "tasker: #{count} attempts waited behind a slow one and are given up, to run elsewhere" } if count.positive?
      end
    rescue StandardError => e
      @logger.error { "tasker: watching bundles: #{e.class}: #{e.message}" }
    end
  end
end
