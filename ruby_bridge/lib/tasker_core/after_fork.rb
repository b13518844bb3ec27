# frozen_string_literal: true

module TaskerCore
  # Puma and Sidekiq's swarm load the app, then fork. What was opened before
  # belongs to the parent alone.
  module AfterFork
    def _fork
      super.tap { |pid| TaskerCore.forget_connections if pid.zero? }
    end
  end
end

Process.singleton_class.prepend(TaskerCore::AfterFork)
