# frozen_string_literal: true

require "rails/railtie"

module TaskerCore
  # Settings in the Rails way, in config/application.rb or an initializer:
  #
  #   config.tasker.pool_size = 10
  class Railtie < Rails::Railtie
    config.tasker = ActiveSupport::OrderedOptions.new
    config.tasker_core = config.tasker # its older name

    # Templates that are edited in development are read anew, as code is.
    initializer "tasker_core.watch_templates" do |app|
      app.config.watchable_dirs[app.root.join("config/tasker/tasks").to_s] = %i[yaml yml]
      app.reloader.to_prepare { TaskHandlerRegistry.instance.reload! }
    end

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
