# frozen_string_literal: true

module TaskerCore
  # What is done around each handler: the outside of an attempt, from Rails's
  # reloader inwards to the team's own middleware. Compiled once, out of what is
  # configured and loaded; where that is nothing, a handler is simply called.
  #
  #   reloader → trace → CurrentAttributes → log tags → error reports → perform.tasker → open transactions → config.middleware → handler
  #
  # Errors of a handler go through, and so do those of the surroundings: they
  # fail the attempt.
  class HandlerSurroundings
    # @param config [Configuration]
    def initialize(config)
      layers = [Reloading.for(config), TraceContext.for(config), CurrentValues.for(config), LogTags.for(config), ErrorReports.for(config),
                PerformEvent.for(config), OpenTransactions.for(config), *config.middleware.map { |middleware| Middleware.new(middleware) }].compact
      @run = compile(layers) if layers.any?
    end

    # @param task [TaskContext]
    # @param step [StepContext]
    # @yield runs the handler
    # @return [Object] what the block returned, whatever the layers return
    def call(task, step)
      return yield unless @run

      result = nil
      @run.call(task, step) { result = yield }
      result
    end

    private

    def compile(layers)
      layers.reverse.inject(->(_task, _step, &handler) { handler.call }) do |inner, layer|
        ->(task, step, &handler) { layer.call(task, step) { inner.call(task, step, &handler) } }
      end
    end

    # Inside Sidekiq, Sidekiq::Rails::Reloader has wrapped the whole job.
    class Reloading
      def self.for(config) = config.executor && !Sidekiq.server? ? new(config.executor) : nil

      def initialize(executor) = @executor = executor

      def call(_task, _step, &) = @executor.wrap(&)
    end

    # For lines of Rails.logger. Those of Sidekiq's have a context of their own.
    class LogTags
      def self.for(config)
        logger = defined?(Rails) && Rails.respond_to?(:logger) ? Rails.logger : nil
        new(logger) if config.log_tags && logger.respond_to?(:push_tags) && !logger.equal?(Sidekiq.logger)
      end

      def initialize(logger) = @logger = logger

      # Not tagged with a block: a logger that broadcasts to several may call
      # it once for each, and a handler must run once.
      def call(task, step)
        tags = ["tasker", "task=#{task.task_id}", "step=#{step.name}"]
        @logger.push_tags(*tags)
        yield
      ensure
        @logger.pop_tags(tags.size)
      end
    end

    # perform.tasker, for ActiveSupport::Notifications.
    class PerformEvent
      NAME = "perform.tasker"

      def self.for(_config) = defined?(ActiveSupport::Notifications) ? new : nil

      def call(task, step, &)
        return yield unless ActiveSupport::Notifications.notifier.listening?(NAME)

        ActiveSupport::Notifications.instrument(NAME, Surrounded.describe(task, step), &)
      end
    end

    # One of config.middleware.
    class Middleware
      def initialize(middleware) = @middleware = middleware

      def call(task, step)
        called = false
        @middleware.call(task, step) do
          raise ConfigurationError, "#{@middleware.inspect} of config.middleware called its block twice: a handler runs once per attempt" if called

          called = true
          yield
        end
        return if called

        raise ConfigurationError, "#{@middleware.inspect} of config.middleware did not call its block: let it raise an error when no handler shall run"
      end
    end

    # Which attempt it is, for events and error reports.
    module Surrounded
      # @return [Hash{Symbol => Object}]
      def self.describe(task, step)
        { task_id: task.task_id, template: "#{task.namespace}/#{task.name}@#{task.version}", step_id: step.step_id, step: step.name,
          attempt: step.attempt, handler: step.handler_class }
      end
    end

    private_constant :Reloading, :LogTags, :PerformEvent, :Middleware
  end
end
