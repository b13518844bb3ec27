# frozen_string_literal: true

require_relative "boot"

require "logger" # Rails before 7.1 relies on somebody else to have loaded it
require "rails"
require "active_record/railtie"
require "sidekiq"
require "sidekiq/rails" # Sidekiq leaves it out when it was loaded before Rails
require "tasker_core"

module Shop
  # Configuration that fits on a page, for development and production alike.
  class Application < Rails::Application
    config.root = File.expand_path("..", __dir__)

    # An app of one's own names the version that it was written for. This one
    # runs on all from 6.1 on.
    config.load_defaults Rails.version.to_f

    config.eager_load = config.cache_classes = Rails.env.production?
    config.logger = ActiveSupport::Logger.new($stderr)
    config.log_level = :info
    config.time_zone = "UTC"

    # Nothing here is signed or encrypted.
    config.secret_key_base = "unused"

    # Schema "tasker" is migrated by `tasker migrate up`; db/schema.rb would
    # name it on Rails 7.1 and later.
    config.active_record.dump_schema_after_migration = false
  end
end
