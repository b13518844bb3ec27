# frozen_string_literal: true

module TaskerCore
  # How long handlers take in this process, of late: the engine has only quick
  # ones ride together in one Sidekiq job.
  class HandlerTimes
    # Weight of the newest.
    WEIGHT = 0.05
    # Classes that are remembered; a process with more forgets.
    MOST = 1_000

    def initialize
      @mutex = Mutex.new
      @means = {}
    end

    # @param handler [String] class
    # @param seconds [Float]
    # @return [void]
    def record(handler, seconds)
      @mutex.synchronize do
        @means.clear if @means.size >= MOST && !@means.key?(handler)
        mean = @means[handler]
        @means[handler] = mean ? mean + ((seconds - mean) * WEIGHT) : seconds
      end
    end

    # @return [Hash{String => Float}] class to seconds
    def to_h = @mutex.synchronize { @means.transform_values { |seconds| seconds.round(6) } }
  end
end
