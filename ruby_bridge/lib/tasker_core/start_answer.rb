# frozen_string_literal: true

require "json"
require "pg"

module TaskerCore
  # One row of tasker.start_attempts, as the document of contract/start_attempt.json.
  module StartAnswer
    # By their places: a Hash for each row would cost as much as all the rest.
    COLUMNS = %w[
      refusal task_id namespace name version context priority correlation_id parent_task_id tags initiator source_system reason
      created_at carrier step_id step_name attempt attempts_used attempt_limit handler_class config timeout_seconds heartbeat_seconds
      progress dependencies
    ].freeze
    SQL = <<~SQL.freeze
      SELECT #{COLUMNS.join(', ').sub('created_at', %q(to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')))}
      FROM tasker.start_attempts($1, $2, $3, $4)
    SQL
    TAGS = PG::TextDecoder::Array.new

    module_function

    # @param row [Array<String, nil>] in the order of COLUMNS
    # @return [Hash{String => Object}]
    def build(row)
      refusal, task_id, namespace, name, version, context, priority, correlation_id, parent_task_id, tags, initiator, source_system, reason,
        created_at, carrier, step_id, step_name, attempt, used, limit, handler, config, timeout, heartbeat, progress, results = row
      return { "status" => "refused", "reason" => refusal } if refusal

      dependencies = json(results) || {}
      { "status" => "started",
        "task" => {
          "task_id" => task_id.to_i, "namespace" => namespace, "name" => name, "version" => version, "context" => json(context),
          "priority" => priority.to_i, "correlation_id" => correlation_id, "parent_task_id" => parent_task_id&.to_i, "tags" => tags(tags),
          "initiator" => initiator, "source_system" => source_system, "reason" => reason, "created_at" => created_at, "carrier" => json(carrier)
        },
        "step" => {
          "step_id" => step_id.to_i, "name" => step_name, "attempt" => attempt.to_i, "attempts_used" => used.to_i, "attempt_limit" => limit.to_i,
          "handler_class" => handler, "config" => json(config), "timeout_seconds" => number(timeout), "heartbeat_seconds" => number(heartbeat),
          "progress" => json(progress), "depends_on" => dependencies.keys
        },
        "dependencies" => dependencies }
    end

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
