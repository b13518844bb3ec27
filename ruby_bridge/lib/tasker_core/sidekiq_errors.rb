# frozen_string_literal: true

module TaskerCore
  # What an error means to Sidekiq; and hands one to its error handlers, as it
  # does with one that a job raises.
  module SidekiqErrors
    module_function

    # A handler that rescues Exception may have wrapped the Shutdown.
    #
    # @return [Boolean] whether the error comes of Sidekiq's shutdown
    def shutdown?(error)
      seen = {}.compare_by_identity
      while error && !seen.key?(error)
        return true if error.is_a?(Sidekiq::Shutdown)

        seen[error] = true
        error = error.cause
      end
      false
    end

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
