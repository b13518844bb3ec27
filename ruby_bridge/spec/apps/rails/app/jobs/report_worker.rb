# frozen_string_literal: true

# Written for Sidekiq, not for tasker.
class ReportWorker
  include Sidekiq::Worker
  sidekiq_options retry: 7

  sidekiq_retries_exhausted do |job, error|
    Sidekiq.redis { |redis| redis.rpush("exhausted", "#{job['class']} #{job['args'].to_json} #{error.message}") }
  end

  def perform(order_id, name)
    raise "printer is on fire" if name == "fire"

    { "report" => order_id, "jid" => jid }
  end
end
