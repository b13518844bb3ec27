# frozen_string_literal: true

# What the sidekiq process of this benchmark loads.
require "sidekiq"
require "tasker_core"

Sidekiq.configure_server { |c| c.redis = { url: ENV.fetch("REDIS_URL") } }
Sidekiq.logger.level = Logger::WARN

# Does nothing: what is left is the way there and back.
class Noop < TaskerCore::BaseStepHandler
  def process(_task, _sequence, _step) = { "ok" => true }
end
