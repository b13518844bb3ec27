# frozen_string_literal: true

module TaskerCore
  # What SQL raises, as errors of this gem; and what is kept of a failed
  # attempt, as the error that it was. docs/ruby.md has both tables.
  module ErrorMapping
    # The engine's own refusals, then what blames the caller's values: data
    # exception, violated constraint, a limit of the server.
    CLASSES = {
      "TK001" => TemplateNotFoundError, # no such template, or not in this version
      "TK002" => ValidationError,       # a template that is in use was changed
      "TK003" => ValidationError,       # a value that the engine can't work with
      "TK004" => OrchestrationError,    # a worker was declared dead
      "TK005" => OrchestrationError,    # a worker's loop has lost its task
      "TK006" => StateTransitionError,  # no such transition
      "TK007" => ValidationError,       # a malformed report
      "TK008" => StateTransitionError,  # the verb doesn't fit the state
      "TK009" => OrchestrationError,    # a worker doesn't know the gates as they are
      "P0002" => NotFoundError,
      "22" => ValidationError,
      "23" => ValidationError,
      "54" => ValidationError
    }.freeze

    # Codes of failures that the engine makes, or knows.
    FAILURES = {
      "attempt_timeout" => TimeoutError, "heartbeat_timeout" => TimeoutError,
      "schedule_to_start_timeout" => TimeoutError, "task_deadline" => TimeoutError,
      "handler_not_found" => HandlerNotFoundError,
      "result_not_serializable" => ResultNotSerializableError, "result_too_large" => ResultTooLargeError
    }.freeze

    module_function

    # @param error [Exception] of PG, of ActiveRecord, or a DatabaseError
    # @return [OrchestrationError, nil] raised where +error+ was rescued it has
    #   it as its cause; nil: not the engine's refusal (a lost connection, a deadlock, …)
    def translate(error)
      result = result_of(error) or return
      state = result.error_field(PG::PG_DIAG_SQLSTATE).to_s
      mapped = CLASSES[state] || CLASSES[state[0, 2]] or return
      text = [PG::PG_DIAG_MESSAGE_PRIMARY, PG::PG_DIAG_MESSAGE_HINT].filter_map { |field| result.error_field(field) }
      mapped.new(text.join(" – "), sqlstate: state)
    end

    # @param failure [Hash{String => Object}, nil] such as tasker.steps.error holds
    # @return [Error, nil] to look at or to raise: with the message and the
    #   backtrace that were reported; nil for none
    def error_of(failure)
      return if failure.nil?

      error = build(failure, failure["message"].to_s)
      error.set_backtrace(Array(failure["backtrace"])) if failure["backtrace"]
      error
    end

    # @private
    def build(failure, message)
      mapped = FAILURES[failure["code"]]
      return mapped.new(message) if mapped
      return PermanentError.new(message, error_code: failure["code"], context: failure["context"] || {}) if failure["permanent"]

      RetryableError.new(message, retry_after: failure["retry_after"], context: failure["context"] || {})
    end

    # @private ActiveRecord's error has PG's as its cause.
    def result_of(error)
      3.times do
        return error.result if error.is_a?(PG::Error) && error.respond_to?(:result) && error.result

        error = error&.cause
      end
      nil
    end
  end
end
