# frozen_string_literal: true

require "logger"
require "rails"
require "active_record/railtie"
require "active_job/railtie"
require "tasker_core"

module Shop
  class Application < Rails::Application
    config.root = File.expand_path("..", __dir__)
    config.load_defaults "#{Rails::VERSION::MAJOR}.#{Rails::VERSION::MINOR}"
    config.eager_load = false
    config.logger = Logger.new($stdout)
    config.secret_key_base = "spec"
    config.active_job.queue_adapter = :sidekiq
    config.tasker_core.pool_size = 3
    config.tasker.events_in_sidekiq = ENV.key?("SPEC_EVENTS")
    config.tasker.current_attributes = ["Current"]
  end
end
