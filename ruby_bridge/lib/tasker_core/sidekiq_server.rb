# frozen_string_literal: true

# What happens in the `sidekiq` process itself. configure_server does nothing
# in web processes and consoles.
Sidekiq.configure_server do |config|
  # Sidekiq before 7 makes redis-rb 4.8 warn at each fetch: gigabytes of log.
  Redis.silence_deprecations = true if defined?(Redis) && Redis.respond_to?(:silence_deprecations=)

  config.on(:startup) do
    TaskerCore.process_registration.id
  rescue TaskerCore::DatabaseError => e
    # The first attempt registers, when Postgres is back.
    TaskerCore.config.logger.warn { "tasker: not registered yet: #{e.message}" }
  end
end
