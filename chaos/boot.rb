# frozen_string_literal: true

# What the Sidekiq processes of the chaos suite load: handlers that keep a
# ledger of what they have done.
require "active_record"
require "sidekiq"
require "tasker_core"

ActiveRecord::Base.establish_connection(ENV.fetch("TASKER_DATABASE_URL"))
Sidekiq.configure_server { |c| c.redis = { url: ENV.fetch("REDIS_URL") } }

# The work: it takes a while, and fails as its config says.
module Ledger
  def self.work(step, kind)
    config = step.config
    sleep config.fetch("seconds")
    raise TaskerCore::PermanentError.new("told to", error_code: "told_to") if config["permanent"]
    raise TaskerCore::RetryableError, "told to" if step.attempts_used <= config.fetch("times")

    ActiveRecord::Base.connection_pool.with_connection do |connection|
      connection.execute("INSERT INTO chaos.ledger (step_id, attempt, kind) VALUES (#{Integer(step.step_id)}, #{Integer(step.attempt)}, '#{kind}')")
    end
    { "attempt" => step.attempt }
  end
end

# Its effect commits by itself, before its result.
class LedgerStep < TaskerCore::BaseStepHandler
  def process(_task, _sequence, step) = Ledger.work(step, "ruby")
end

# Its effect and its result commit together.
class TransactionalLedgerStep < TaskerCore::BaseStepHandler
  transactional

  def process(_task, _sequence, step) = Ledger.work(step, "transactional")
end
