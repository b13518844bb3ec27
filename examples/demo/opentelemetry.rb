# frozen_string_literal: true

# Stands for the gems opentelemetry-api and opentelemetry-sdk, which Debian does not
# package: as much of their API as tasker_core and the demo need, and an exporter
# that posts each span to the demo's collector. An app has the gems instead, and none of this.
require "json"
require "net/http"
require "securerandom"

module OpenTelemetry # rubocop:disable Style/Documentation
  SpanContext = Struct.new(:trace_id, :span_id) do
    def traceparent = "00-#{trace_id}-#{span_id}-01"
  end

  # What the thread is in.
  module Context
    def self.current = Thread.current[:otel]

    def self.with_current(context)
      before = current
      Thread.current[:otel] = context
      yield context
    ensure
      Thread.current[:otel] = before
    end
  end

  # W3C trace context.
  module TraceContext
    def self.inject(carrier) = Context.current && carrier["traceparent"] = Context.current.traceparent

    def self.extract(carrier)
      _, trace_id, span_id, = carrier["traceparent"].to_s.split("-")
      SpanContext.new(trace_id, span_id) if span_id
    end
  end

  def self.propagation = TraceContext

  # Makes spans.
  module Tracer
    def self.in_span(name)
      parent = Context.current
      span = SpanContext.new(parent ? parent.trace_id : SecureRandom.hex(16), SecureRandom.hex(8))
      began = now
      Context.with_current(span) { yield span, span }
    ensure
      OpenTelemetry.export(name:, trace_id: span.trace_id, span_id: span.span_id, parent_span_id: parent&.span_id.to_s, start: began, end: now)
    end

    def self.now = Process.clock_gettime(Process::CLOCK_REALTIME, :nanosecond)
  end

  # Knows one tracer, whatever the name.
  module TracerProvider
    def self.tracer(_name) = Tracer
  end

  def self.tracer_provider = TracerProvider

  def self.export(span)
    Net::HTTP.post(URI("#{ENV.fetch('OTEL_EXPORTER_OTLP_ENDPOINT')}/ruby"), span.to_json)
  end
end
