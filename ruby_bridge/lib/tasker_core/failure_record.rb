# frozen_string_literal: true

require "date"
require "json"
require "time"

module TaskerCore
  # What is kept of an error: the "failure" of a report. Making it must not
  # fail, whatever the error's own methods do.
  class FailureRecord
    BACKTRACE_LINES = 50
    CONTEXT_BYTES = 64 << 10

    # @param error [Exception]
    # @param handler [String] the class that ran
    # @param config [Configuration] whose secrets are masked, and which errors are permanent
    def initialize(error, handler:, config: TaskerCore.config)
      @error = error
      @handler = handler
      @secrets = config.secret_filter
      @rule = ErrorRules.decide(error, handler:, permanent: config.permanent_errors)
    end

    # @return [Hash{String => Object}] as in contract/reports.json; what is not known is left out
    def to_h
      { "class" => name_of(@error), "message" => message, "backtrace" => backtrace,
        "cause" => @error.cause && name_of(@error.cause), "code" => code, "permanent" => @rule.permanent,
        "retry_after" => retry_after, "context" => context, "handler" => CleanText.call(@handler) }.compact
    end

    private

    # Cleaned first, as broken text can't be searched; and twice what is kept, so
    # that a secret at the cut is known as one.
    def safe(text, limit) = CleanText.call(@secrets.text(CleanText.call(text, limit: 2 * limit)), limit:)

    def name_of(error) = safe(error.class.name || error.class.inspect, 500)

    def message
      safe(@error.message, 10_000)
    rescue StandardError => e
      "(its message raised #{e.class})"
    end

    def backtrace
      lines = Array(@error.backtrace)
      own = defined?(Rails) && Rails.respond_to?(:backtrace_cleaner) ? Rails.backtrace_cleaner.clean(lines) : lines
      (own.empty? ? lines : own).first(BACKTRACE_LINES).map { |line| safe(line, 1_000) }
    end

    def code
      code = @error.is_a?(PermanentError) ? @error.error_code : @rule.code
      safe(code, 200) if code
    end

    def retry_after
      return unless @error.is_a?(RetryableError)

      case (asked = @error.retry_after)
      when Time, Date then PointInTime.of(asked).httpdate
      when String then CleanText.call(asked, limit: 100)
      when nil then nil
      else seconds(asked)
      end
    end

    # Numeric, or what stands for seconds, such as ActiveSupport::Duration.
    def seconds(asked)
      seconds = Float(asked.to_f)
      return unless seconds.finite? && seconds >= 0

      seconds == seconds.to_i ? seconds.to_i : seconds
    rescue StandardError
      nil
    end

    def context
      return unless @error.is_a?(RetryableError) || @error.is_a?(PermanentError)

      context = @error.context
      return if context.nil? || context.empty?

      tree = @secrets.tree(ForgivingJsonTree.build(context))
      bytes = JSON.generate(tree, max_nesting: 0).bytesize
      bytes > CONTEXT_BYTES ? { "omitted" => "#{bytes} bytes of context, #{CONTEXT_BYTES} are kept" } : tree
    rescue StandardError => e
      { "omitted" => "the context raised #{e.class}" }
    end
  end
end
