# frozen_string_literal: true

require "rails/railtie"

module TaskerCore
  # Settings in the Rails way: config.tasker_core.pool_size = 10
  class Railtie < Rails::Railtie
    config.tasker_core = ActiveSupport::OrderedOptions.new

    # Templates that are edited in development are read anew, as code is.
    initializer "tasker_core.watch_templates" do |app|
      app.config.watchable_dirs[app.root.join("config/tasker/tasks").to_s] = %i[yaml yml]
      app.reloader.to_prepare { TaskHandlerRegistry.instance.reload! }
    end

    initializer "tasker_core.configure" do |app|
      TaskerCore.configure do |tasker|
        app.config.tasker_core.each { |name, value| tasker.public_send(:"#{name}=", value) }
      end
    end
  end
end
