# frozen_string_literal: true

# Subscribers in the `sidekiq` process, where the team asks for it.
Sidekiq.configure_server do |config|
  config.on(:startup) { TaskerCore::EventPublisher.start if TaskerCore.config.events_in_sidekiq }
  config.on(:shutdown) { TaskerCore::EventPublisher.stop(timeout: 5) }
end
