# frozen_string_literal: true

require "json"
require "pg"

module TaskerCore
  # One row of tasker.start_attempts, as the document of contract/start_attempt.json.
  module StartAnswer
    TAGS = PG::TextDecoder::Array.new

    module_function

    # @param row [Hash{String => String, nil}]
    # @return [Hash{String => Object}]
    def build(row)
      return { "status" => "refused", "reason" => row["refusal"] } if row["refusal"]

      dependencies = json(row["dependencies"]) || {}
      { "status" => "started", "task" => task(row), "step" => step(row, dependencies.keys), "dependencies" => dependencies }
    end

    def task(row)
      { "task_id" => row["task_id"].to_i, "namespace" => row["namespace"], "name" => row["name"], "version" => row["version"],
        "context" => json(row["context"]), "priority" => row["priority"].to_i, "correlation_id" => row["correlation_id"],
        "parent_task_id" => row["parent_task_id"]&.to_i, "tags" => tags(row["tags"]), "initiator" => row["initiator"],
        "source_system" => row["source_system"], "reason" => row["reason"], "carrier" => json(row["carrier"]),
        "created_at" => row["task_created_at"] }
    end

    def step(row, depends_on)
      { "step_id" => row["step_id"].to_i, "name" => row["step_name"], "attempt" => row["attempt"].to_i,
        "attempts_used" => row["attempts_used"].to_i, "attempt_limit" => row["attempt_limit"].to_i,
        "handler_class" => row["handler_class"], "config" => json(row["config"]), "timeout_seconds" => number(row["timeout_seconds"]),
        "heartbeat_seconds" => number(row["heartbeat_seconds"]), "progress" => json(row["progress"]), "depends_on" => depends_on }
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
