# frozen_string_literal: true

module TaskerCore
  # Whatever this gem raises is one of these.
  class Error < StandardError; end

  # The gem can't work as it is configured. The message says what to set.
  class ConfigurationError < Error; end

  # A Sidekiq job whose arguments this version of the gem doesn't understand.
  # The job is refused; the engine dispatches the attempt again.
  class ProtocolError < Error; end

  # The engine does not do what it was asked for. The message says why;
  # +cause+ is the driver's error. docs/ruby.md has the table of SQLSTATEs.
  class OrchestrationError < Error
    # @return [String, nil] five characters; nil when the gem itself refused
    attr_reader :sqlstate

    def initialize(message = nil, sqlstate: nil)
      super(message)
      @sqlstate = sqlstate
    end
  end

  # What was given is wrong. The message says what to mend; nothing was written.
  class ValidationError < OrchestrationError; end

  # A task was not enqueued: its context is not JSON, or Postgres refused it.
  # The message says what to mend; nothing was written.
  class TaskRefusedError < ValidationError; end

  # There is no such template, or not in this version.
  class TemplateNotFoundError < TaskRefusedError; end

  # The task or step is in a state that what was asked for doesn't fit: it has
  # ended, for one.
  class StateTransitionError < OrchestrationError; end

  # There is no such thing.
  class NotFoundError < OrchestrationError; end

  # There is no such task, or the transaction that inserts it has not committed.
  class TaskNotFoundError < NotFoundError; end

  # What was waited for has not come in time. It may still come: nothing was stopped.
  class TimeoutError < Error; end

  # An event of the app's own was not published. The message says what to mend.
  class EventRefusedError < Error; end

  # A call to Postgres failed. +cause+ is the PG::Error.
  class DatabaseError < Error
    # Classes of SQLSTATE that mend themselves: connection, resources,
    # rollback, operator intervention.
    PASSING_CLASSES = %w[08 53 40 57].freeze
    # A standby answers with 25006 during a failover; 55P03 is a lock timeout.
    PASSING_STATES = %w[25006 55P03].freeze
    # Classes of SQLSTATE that blame the values we sent: data exception,
    # limits, and the engine's own refusals.
    DATA_CLASSES = %w[22 54 TK].freeze

    # @return [String, nil] five characters; nil when the server didn't answer
    attr_reader :sqlstate

    # @param answered [Boolean] false: the statement may or may not have been carried out
    def initialize(message, sqlstate: nil, answered: true)
      super(message)
      @sqlstate = sqlstate
      @answered = answered
    end

    # @return [Boolean] whether the connection broke after the statement was
    #   sent and before the answer came: it may have been committed
    def unanswered? = !@answered

    # @return [Boolean] whether the same call may succeed later
    def passing?
      sqlstate.nil? || PASSING_STATES.include?(sqlstate) || PASSING_CLASSES.include?(sqlstate[0, 2])
    end

    # @return [Boolean] whether Postgres can't take the values, however often they are sent
    def refuses_data? = !sqlstate.nil? && DATA_CLASSES.include?(sqlstate[0, 2])
  end

  # Raise it when the step may work on a later attempt.
  #
  #   raise TaskerCore::RetryableError.new("rate limited", retry_after: response["Retry-After"])
  class RetryableError < Error
    # @return [Numeric, ActiveSupport::Duration, Time, Date, String, nil] as given
    attr_reader :retry_after
    # @return [Hash]
    attr_reader :context

    # @param message [String]
    # @param retry_after [Numeric, ActiveSupport::Duration, Time, Date, String, nil] seconds to wait, a point
    #   in time, or the text of a Retry-After header. Replaces the step's backoff, up to
    #   the template's cap. Anything else is ignored.
    # @param context [Hash] kept with the failure, for people
    # @param more [Hash{Symbol => Object}] what else is said goes into the context
    def initialize(message = "the step may work on a later attempt", retry_after: nil, context: {}, **more)
      super(message)
      @retry_after = retry_after
      @context = more.empty? ? context : { **context.to_h, **more }
    end
  end

  # What travels with a task is not signed, or by a key that this process doesn't have.
  # The handler has not run. After the key is there, the next attempt runs it.
  class HeadersRefusedError < RetryableError; end

  # Raise it when no further attempt can help: the step goes to +error+ at once.
  #
  #   raise TaskerCore::PermanentError.new("card declined", error_code: "card_declined")
  class PermanentError < Error
    # @return [String, Symbol, nil] a word for programs
    attr_reader :error_code
    # @return [Hash]
    attr_reader :context

    # @param message [String]
    # @param error_code [String, Symbol, nil]
    # @param context [Hash] kept with the failure, for people
    # @param more [Hash{Symbol => Object}] what else is said goes into the context
    def initialize(message = "no further attempt can help", error_code: nil, context: {}, **more)
      super(message)
      @error_code = error_code
      @context = more.empty? ? context : { **context.to_h, **more }
    end
  end

  # The attempt that a heartbeat came from is over: its task was cancelled, its
  # time was up, or another has taken its place. Let it through: nothing that the
  # attempt still does will count.
  class AttemptOverError < Error; end

  # What a heartbeat carried can't be kept. The message says why.
  class ProgressRefusedError < Error; end

  # The step's +handler_class+ names no handler in this process.
  class HandlerNotFoundError < PermanentError
    def initialize(message) = super(message, error_code: "handler_not_found")
  end

  # What the handler returned is not JSON. The message names the place.
  class ResultNotSerializableError < PermanentError
    def initialize(message) = super(message, error_code: "result_not_serializable")
  end

  # What the handler returned is larger than a result may be.
  class ResultTooLargeError < PermanentError
    def initialize(message) = super(message, error_code: "result_too_large")
  end
end
