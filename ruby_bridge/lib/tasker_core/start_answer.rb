# frozen_string_literal: true

require "json"
require "pg"

module TaskerCore
  # One row of tasker.start_attempts. What takes long to read is read on demand.
  class StartAnswer
    # By their places: a Hash for each row would cost as much as all the rest.
    COLUMNS = %w[
      step_id attempt refusal handler_class attempts_used attempt_limit heartbeat_seconds
      task_id namespace name version context priority correlation_id parent_task_id tags initiator source_system reason created_at carrier
      secret_of_attempt step_name config timeout_seconds progress dependencies idempotency_key
    ].freeze
    SQL = <<~SQL.freeze
      SELECT #{COLUMNS.join(', ').sub('created_at', %q(to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')))}
      FROM tasker.start_attempts($1, $2, $3, $4, $5)
    SQL
    TAGS = PG::TextDecoder::Array.new
    SECRET = COLUMNS.index("secret_of_attempt") - 7 # of those that follow the first seven
    private_constant :TAGS, :SECRET

    # @return [Integer]
    attr_reader :step_id, :attempt
    # @return [String, nil] why it was not started
    attr_reader :refusal
    # @return [String]
    attr_reader :handler_class
    # @return [Numeric, nil]
    attr_reader :heartbeat_seconds
    # @return [Integer, nil] what reports and heartbeats have to show
    attr_reader :secret

    # @param row [Array<String, nil>] in the order of COLUMNS
    def initialize(row)
      step_id, attempt, @refusal, @handler_class, used, limit, heartbeat, *@rest = row
      @step_id = step_id.to_i
      @attempt = attempt.to_i
      @used = used.to_i
      @limit = limit.to_i
      @heartbeat_seconds = number(heartbeat)
      @secret = @rest[SECRET]&.to_i
    end

    def last_attempt? = @used >= @limit

    # @return [Hash{String => Object}] as in contract/start_attempt.json
    def to_h
      task_id, namespace, name, version, context, priority, correlation_id, parent_task_id, tags, initiator, source_system, reason,
        created_at, carrier, _, step_name, config, timeout, progress, results, key = @rest
      dependencies = json(results) || {}
      { "status" => "started",
        "task" => {
          "task_id" => task_id.to_i, "namespace" => namespace, "name" => name, "version" => version, "context" => json(context),
          "priority" => priority.to_i, "correlation_id" => correlation_id, "parent_task_id" => parent_task_id&.to_i, "tags" => tags(tags),
          "initiator" => initiator, "source_system" => source_system, "reason" => reason, "created_at" => created_at, "carrier" => json(carrier)
        },
        "step" => {
          "step_id" => step_id, "idempotency_key" => key, "name" => step_name, "attempt" => attempt, "attempts_used" => @used, "attempt_limit" => @limit,
          "handler_class" => handler_class, "config" => json(config), "timeout_seconds" => number(timeout), "heartbeat_seconds" => heartbeat_seconds,
          "progress" => json(progress), "depends_on" => dependencies.keys
        },
        "dependencies" => dependencies }
    end

    private

    # Ruby's parser stops at 100 levels: a context or a result of another
    # language may have more.
    def json(text) = text && (text == "{}" ? {} : JSON.parse(text, max_nesting: false))

    def tags(text) = text.nil? || text == "{}" ? [] : TAGS.decode(text)

    def number(text)
      return unless text

      number = text.to_f
      number == number.to_i ? number.to_i : number
    end
  end
end
