# frozen_string_literal: true

module TaskerCore
  # The Sidekiq job that the engine pushes for an attempt, or for several when
  # work has piled up. Its arguments say which attempts to start; everything
  # else comes from Postgres.
  class StepJob
    include(defined?(Sidekiq::Job) ? Sidekiq::Job : Sidekiq::Worker)

    # The finalizer alone decides on retries.
    sidekiq_options retry: false

    # Of the arguments: 1 names one attempt, 2 several.
    VERSIONS = [1, 2].freeze

    # @param arguments [Hash{String => Object}] as in contract/sidekiq_job.json and contract/sidekiq_bundle.json
    # @raise [ProtocolError] when they are of a version that this gem doesn't know
    def perform(arguments)
      AttemptBundle.new(attempts(arguments), handlers: handlers(arguments)).call
    end

    private

    def attempts(arguments)
      named = case arguments.is_a?(Hash) && arguments["v"]
              when 1 then [arguments.values_at("step_id", "attempt", "ticket")]
              when 2 then arguments["attempts"]
              else raise ProtocolError, unknown(arguments)
              end
      return named if named.is_a?(Array) && named.any? && named.all? { |attempt| attempt?(attempt) } && named.map(&:first).uniq.size == named.size

      raise ProtocolError, "a job names its attempts by step_id, attempt and ticket, integers, each step once, not #{CleanText.call(named.inspect, limit: 200)}"
    end

    # Of a hint: without it, an attempt whose class is missing starts, and fails.
    def handlers(arguments) = Array(arguments["handlers"] || arguments["handler"]).grep(String)

    def attempt?(attempt)
      return false unless attempt.is_a?(Array) && attempt.size.between?(2, 3)

      step_id, number, ticket = attempt
      [step_id, number].all? { |n| n.is_a?(Integer) && n.positive? } && (ticket.nil? || ticket.is_a?(Integer))
    end

    def unknown(arguments)
      version = arguments.is_a?(Hash) ? CleanText.call(arguments["v"].inspect, limit: 100) : arguments.class
      "arguments of version #{version}; tasker_core #{TaskerCore::VERSION} understands #{VERSIONS.join(' and ')}: update the gem"
    end
  end
end
