# frozen_string_literal: true

module TaskerCore
  # Hands an error to Sidekiq's error handlers, as it does with one that a job raises.
  module SidekiqErrors
    module_function

    # @param error [Exception]
    # @return [void]
    def handle(error, context = { context: "tasker" })
      if Sidekiq.respond_to?(:default_configuration) # from 7
        Sidekiq.default_configuration.handle_exception(error, context)
      else
        Sidekiq.error_handlers.each { |handler| handler.call(error, context) }
      end
    rescue StandardError => e
      TaskerCore.logger.error { "tasker: an error handler raised #{e.class}: #{e.message}" }
    end
  end
end
