# frozen_string_literal: true

module TaskerCore
  # The Sidekiq job that the engine pushes for each attempt. Its arguments say
  # which attempt to start; everything else comes from Postgres.
  class StepJob
    include(defined?(Sidekiq::Job) ? Sidekiq::Job : Sidekiq::Worker)

    # The finalizer alone decides on retries.
    sidekiq_options retry: false

    VERSION = 1

    # @param arguments [Hash{String => Object}] as in contract/sidekiq_job.json
    # @raise [ProtocolError] when they are of a version that this gem doesn't know
    def perform(arguments)
      unless arguments.is_a?(Hash) && arguments["v"] == VERSION
        version = arguments.is_a?(Hash) ? arguments["v"].inspect : arguments.class
        raise ProtocolError, "arguments of version #{version}; tasker_core #{TaskerCore::VERSION} understands #{VERSION}: update the gem"
      end

      step_id, attempt = arguments.values_at("step_id", "attempt")
      unless step_id.is_a?(Integer) && attempt.is_a?(Integer)
        raise ProtocolError, "step_id and attempt must be integers, not #{step_id.inspect} and #{attempt.inspect}"
      end

      AttemptRun.new(step_id, attempt).call
    end
  end
end
