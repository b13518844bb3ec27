# frozen_string_literal: true

module TaskerCore
  # The settings of Configuration that are about what surrounds a handler.
  module HandlerSettings
    # Values of these ActiveSupport::CurrentAttributes travel with a task: those
    # that are there when it is enqueued are there again around each of its
    # handlers.
    #
    #   config.current_attributes = ["Current"]                     # all attributes
    #   config.current_attributes = { "Current" => %i[user locale] } # these
    #
    # @return [Array<String>, Hash{String => Array<Symbol>, nil}] names of classes
    attr_accessor :current_attributes
    # @return [Array<String>, nil] secrets of at least 32 bytes that sign what current_attributes
    #   puts beside a task: the first signs, all verify. nil: in Rails one that comes of secret_key_base
    attr_accessor :headers_keys
    # @return [Array<String, Class>] serializers of ActiveJob, beside those of symbols, times, dates,
    #   durations, decimals and ranges, that may write and read values of current_attributes
    attr_accessor :headers_serializers
    # What is called around each handler, in this order; the first is outermost.
    # It has to call its block. What it returns is ignored.
    #
    #   config.middleware << ->(task, step, &run) { Timing.measure(step.name, &run) }
    #
    # @return [Array<#call>] called with a TaskContext, a StepContext and a block
    attr_accessor :middleware
    # What is told of an error that fails a step. What it raises is logged.
    #
    #   config.on_error << ->(error, context) { Tracker.notify(error, extra: context) }
    #
    # @return [Array<#call>] called with the error and a Hash of ids and names
    attr_accessor :on_error
    # @return [Boolean] whether on_error and Rails.error hear also of errors after which the step is tried again
    attr_accessor :report_retried_errors
    # @return [Boolean] whether lines that a handler writes to Rails.logger are tagged with its task and step
    attr_accessor :log_tags
    # @return [Boolean, Array<String>] whether handler_class of a template may name a job class of the app's, for Sidekiq
    #   or ActiveJob, that was not written for tasker; or which
    attr_accessor :adopt_jobs
    # @return [Array<String, Class>] classes of which `{record: …}` of a template may find records, whatever template
    attr_accessor :record_classes
    # @return [#wrap, nil] what runs each handler outside of Sidekiq, which brings its own: in Rails the reloader
    attr_accessor :executor

    def initialize
      @current_attributes = []
      @headers_serializers = []
      @record_classes = []
      @middleware = []
      @on_error = []
      @report_retried_errors = false
      @log_tags = true
      @adopt_jobs = true
    end

    # @private
    # @raise [ConfigurationError] there is no key
    def header_keys = @header_keys ||= HeaderKeys.for(self)

    # @private
    def surroundings = @surroundings ||= HandlerSurroundings.new(self)

    # @raise [ConfigurationError] naming the first setting that can't be
    def validate!
      CurrentValues.check(current_attributes)
      HeaderKeys.check(headers_keys)
      HeaderSerializers.check(headers_serializers)
      unless record_classes.is_a?(Array) && record_classes.all? { |name| CurrentValues::NAME.match?(name.to_s) }
        raise ConfigurationError, "record_classes must be names of classes, such as [\"Order\"], not #{record_classes.inspect}"
      end

      { middleware:, on_error: }.each do |name, callables|
        raise ConfigurationError, "#{name} must be an Array, not #{callables.inspect}" unless callables.is_a?(Array)

        index = callables.index { |callable| !callable.respond_to?(:call) }
        raise ConfigurationError, "#{name}[#{index}] has no method call: #{callables[index].inspect}" if index
      end
      unless [true, false].include?(adopt_jobs) || (adopt_jobs.is_a?(Array) && adopt_jobs.all?(String))
        raise ConfigurationError, "adopt_jobs must be true, false or names of job classes, not #{adopt_jobs.inspect}"
      end
      raise ConfigurationError, "executor has no method wrap: #{executor.inspect}" unless executor.nil? || executor.respond_to?(:wrap)

      @header_keys = nil
      @surroundings = nil # the next handler gets what is configured now
    end
  end
end
