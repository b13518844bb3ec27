# frozen_string_literal: true

require "rails/railtie"

module TaskerCore
  # Settings in the Rails way, in config/application.rb or an initializer:
  #
  #   config.tasker.pool_size = 10
  class Railtie < Rails::Railtie
    config.tasker = ActiveSupport::OrderedOptions.new
    config.tasker_core = config.tasker # its older name

    # After the app's own initializers, where settings may be, too.
    initializer "tasker_core.configure", after: :load_config_initializers do |app|
      TaskerCore.configure do |tasker|
        tasker.executor ||= app.reloader
        tasker.update(app.config.tasker, called: "config.tasker")
      end
    end

    rake_tasks { load File.join(__dir__, "tasks.rake") }
  end
end
