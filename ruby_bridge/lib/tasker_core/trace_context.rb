# frozen_string_literal: true

require "digest"

module TaskerCore
  # The trace of who enqueues a task, carried to its handlers, where the app has
  # OpenTelemetry: the W3C traceparent travels in the task's carrier, and a handler's
  # spans are children of its attempt's. That one is exported by a worker, when the
  # task has ended (telemetry.otlp_endpoint), and by nobody where none is told to.
  class TraceContext
    # Members of the carrier.
    MEMBERS = %w[traceparent tracestate].freeze
    # As W3C has it. Later versions than 00 may have more members.
    PARENT = /\A(?<version>(?!ff)[0-9a-f]{2})-(?<trace>(?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-(?<flags>[0-9a-f]{2})(?<more>-[\x21-\x7e]*)?\z/
    STATE = /\A[\x20-\x7e]{1,512}\z/

    class << self
      def for(_config) = open_telemetry? ? new : nil

      # @return [Hash{String => String}] the carrier's part of a task that is being enqueued
      def carrier
        return {} unless open_telemetry?

        sent = {}
        OpenTelemetry.propagation.inject(sent)
        sent.slice(*MEMBERS)
      end

      # The parent of a handler's spans. Go derives the same: contract/trace.json.
      # @param parent [String] the traceparent of who enqueued
      # @return [String, nil] nil: it is none
      def of_attempt(parent, step_id, attempt)
        known = PARENT.match(parent.to_s)
        return if known.nil? || (known[:version] == "00" && known[:more])

        span = Digest::SHA256.hexdigest("#{known[:trace]}/attempt/#{step_id}/#{attempt}")[0, 16]
        "#{known[:version]}-#{known[:trace]}-#{span}-#{known[:flags]}"
      end

      private

      def open_telemetry? = defined?(OpenTelemetry) && OpenTelemetry.respond_to?(:propagation) && defined?(OpenTelemetry::Context)
    end

    # As a layer of HandlerSurroundings. Neither member is signed: a trace of another task
    # is a wrong picture and no more, so it is enough that both have their form.
    def call(task, step, &)
      sent = TaskCarrier.of(task)
      parent = self.class.of_attempt(sent["traceparent"], step.step_id, step.attempt) or return yield
      state = sent.slice("tracestate").select { |_, value| value.is_a?(String) && STATE.match?(value) }
      context = OpenTelemetry.propagation.extract({ **state, "traceparent" => parent })
      OpenTelemetry::Context.with_current(context, &)
    end
  end
end
