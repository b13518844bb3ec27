# frozen_string_literal: true

module TaskerCore
  # What Rails does around a request or a job: connections go back to their
  # pool, code is reloaded in development. Without Rails, nothing.
  module AppExecutor
    module_function

    def wrap(&)
      app = Rails.application if defined?(Rails) && Rails.respond_to?(:application)
      app ? app.reloader.wrap(&) : yield
    end
  end
end
