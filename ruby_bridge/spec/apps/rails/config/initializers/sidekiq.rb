# frozen_string_literal: true

# A server middleware of the team's own, that knows a step when it sees one.
class StepWatch
  def call(_job, payload, _queue)
    step = payload["args"].first
    Sidekiq.redis { |redis| redis.rpush("middleware", "#{payload['class']} #{step.values_at('handler', 'step_id', 'attempt').join(' ')}") }
    yield
  end
end

Sidekiq.configure_server do |config|
  config.server_middleware { |chain| chain.add StepWatch }
end
