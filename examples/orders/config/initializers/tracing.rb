# frozen_string_literal: true

# With OpenTelemetry's gems in the bundle, placing an order and running a handler are
# spans. That the handler's are in the trace of who placed the order is tasker_core's work.
if defined?(OpenTelemetry)
  tracer = OpenTelemetry.tracer_provider.tracer("orders")
  traced = Module.new do
    define_method(:call) { |**order| tracer.in_span("place order (Rails)") { super(**order) } }
  end
  Rails.application.config.to_prepare { PlaceOrder.singleton_class.prepend(traced) }

  TaskerCore.configure do |config|
    config.middleware << lambda do |_task, step, &handler|
      tracer.in_span("#{step.handler_class} (Sidekiq)") { handler.call }
    end
  end
end
