# frozen_string_literal: true

# What the sidekiq process of this benchmark loads.
require "sidekiq"
require "tasker_core"

Sidekiq.configure_server { |c| c.redis = { url: ENV.fetch("REDIS_URL") } }
Sidekiq.logger.level = Logger::WARN

# The same work, as a step and as a job.
class Work < TaskerCore::BaseStepHandler
  def process(_task, _sequence, step)
    seconds = step.config["seconds"]
    sleep seconds if seconds.positive?
    { "ok" => true }
  end
end

class Native
  include Sidekiq::Worker

  sidekiq_options retry: false

  def perform(seconds)
    sleep seconds if seconds.positive?
    { "ok" => true }
  end
end
