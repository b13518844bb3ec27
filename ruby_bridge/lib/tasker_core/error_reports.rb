# frozen_string_literal: true

module TaskerCore
  # Tells Rails's error reporter, which Rails has from version 7 on, and
  # config.on_error of errors that fail a step for good: no further attempt
  # follows. What is retried is told only if config.report_retried_errors says so.
  class ErrorReports
    SOURCE = "tasker_core"

    # @return [ErrorReports, nil] nil: there is nobody to tell
    def self.for(config) = config.on_error.any? || reporter ? new(config) : nil

    # @return [ActiveSupport::ErrorReporter, nil]
    def self.reporter = defined?(Rails) && Rails.respond_to?(:error) ? Rails.error : nil

    # Around the lookup of a handler, which comes before its surroundings.
    #
    # @param answer [#to_h] as in contract/start_attempt.json
    # @param config [Configuration]
    # @return [Object] what the block returned
    def self.around_lookup(answer, config)
      yield
    rescue *AttemptRun::FAILURES => e
      reports = self.for(config) or raise
      facts = answer.to_h
      reports.call(TaskContext.new(facts.fetch("task")), StepContext.new(facts.fetch("step"))) { raise e }
    end

    # An attempt that is over, or that a shutdown ended, fails nothing.
    #
    # @return [Boolean] whether the step fails for good with this error
    def self.final?(error, step, config = TaskerCore.config)
      return false if error.is_a?(AttemptOverError) || SidekiqErrors.shutdown?(error)

      step.last_attempt? || ErrorRules.decide(error, handler: step.handler_class, permanent: config.permanent_errors).permanent
    end

    # @param config [Configuration]
    def initialize(config) = @config = config

    # As a layer of HandlerSurroundings.
    def call(task, step)
      yield
    rescue *AttemptRun::FAILURES => e
      report(e, HandlerSurroundings::Surrounded.describe(task, step)) if @config.report_retried_errors || self.class.final?(e, step, @config)
      raise
    end

    # Never raises.
    #
    # @param error [Exception]
    # @param context [Hash{Symbol => Object}] which attempt it was
    # @return [void]
    def report(error, context)
      guarded("Rails.error") { self.class.reporter&.report(error, handled: true, context:, source: SOURCE) }
      @config.on_error.each { |callback| guarded("config.on_error") { callback.call(error, context) } }
    end

    private

    def guarded(who)
      yield
    rescue StandardError, ScriptError => e
      @config.logger.error { "tasker: #{who} raised #{e.class}: #{@config.secret_filter.text(CleanText.call(e.message))}" }
    end
  end
end
