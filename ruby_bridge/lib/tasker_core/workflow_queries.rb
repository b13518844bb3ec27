# frozen_string_literal: true

require "json"
require "time"

module TaskerCore
  # What is asked of schema tasker about tasks, steps and templates. Refusals of
  # the engine come out as OrchestrationError, all other errors as they are.
  class WorkflowQueries
    # json, not jsonb, of which the results of many steps could be too much.
    TASK = <<~SQL
      SELECT json_build_object(
        'task_id', t.task_id, 'namespace', t.namespace, 'name', t.name, 'version', t.version, 'state', t.state,
        'execution_status', t.execution_status, 'total_steps', t.steps_total, 'completed_steps', t.steps_satisfied,
        'failed_steps', t.steps_failed, 'error', t.error, 'created_at', t.created_at, 'started_at', t.started_at,
        'finished_at', t.finished_at, 'next_retry_at', t.next_retry_at,
        'steps', (SELECT json_agg(json_build_object(
            'step_id', s.step_id, 'name', s.name, 'state', s.state, 'attempts', s.attempts, 'result', s.result, 'error', s.error,
            'started_at', s.started_at, 'finished_at', s.finished_at,
            'retry_at', CASE WHEN s.state = 'waiting_for_retry' THEN s.retry_at END) ORDER BY s.position)
          FROM tasker.steps s WHERE s.task_id = t.task_id)) AS answer
      FROM tasker.task_summaries t WHERE t.task_id = $1
    SQL

    # What only waits for somebody to start it is viable too; what a limit, a
    # pause or its dependencies hold back is not.
    VIABLE = <<~SQL
      SELECT coalesce(jsonb_agg(jsonb_build_object(
        'step_id', r.step_id, 'task_id', r.task_id, 'name', r.name, 'current_state', r.state,
        'dependencies_satisfied', r.dependencies_satisfied = r.dependencies_total, 'retry_eligible', r.attempts_used < r.attempt_limit,
        'attempts', r.attempts_used, 'retry_limit', r.attempt_limit, 'next_retry_at', r.retry_at, 'explanation', r.explanation,
        'last_failure_at', (SELECT max(e.created_at) FROM tasker.events e
                            WHERE e.task_id = r.task_id AND e.step_id = r.step_id AND e.name IN ('step.retry_requested', 'step.failed')))
        ORDER BY r.position), '[]') AS answer
      FROM tasker.step_readiness r
      WHERE r.task_id = $1 AND r.reason IN ('ready', 'no_handler_alive', 'no_worker_alive')
    SQL

    # Only what waits for a moment to come, and has no worker on it, needs to be
    # asked for; of run_at the caller has said it himself.
    ASK = <<~SQL
      SELECT CASE WHEN t.state IN ('pending', 'in_progress') AND t.owner IS NULL AND t.paused_at IS NULL
                   AND (t.run_at IS NULL OR t.run_at <= now())
                   AND EXISTS (SELECT FROM tasker.steps s WHERE s.task_id = t.task_id AND s.state = 'waiting_for_retry' AND s.retry_at > now())
             THEN tasker.run_task_now(t.task_id, 'tasker_core', 'asked for a run') END
      FROM tasker.tasks t WHERE t.task_id = $1
    SQL

    TEMPLATE = <<~SQL
      SELECT version, definition::text AS definition FROM tasker.task_templates
      WHERE namespace = $1 AND name = $2 AND ($3::text IS NULL OR version = $3) ORDER BY version_key DESC LIMIT 1
    SQL

    # @param connection [PG::Connection, ActiveRecord::ConnectionAdapters::AbstractAdapter, nil]
    #   nil: one of the gem's own, which sees what is committed
    def initialize(connection = nil)
      @connection = connection
    end

    # @return [Hash{String => Object}, nil] attributes of a TaskResult; nil: there is no such task
    def task(task_id) = answer(TASK, [task_id])

    # @return [Array<Hash>] attributes of ViableStep
    def viable_steps(task_id) = answer(VIABLE, [task_id])

    # @return [Boolean] whether there is such a task
    def ask_for_run(task_id) = !exec(ASK, [task_id]).first.nil?

    # @return [void]
    def run_now(task_id, who, why) = exec("SELECT tasker.run_task_now($1, $2, $3)", [task_id, who, why])

    # @return [Array(String, Hash), nil] version and definition of a registered template
    def template(namespace, name, version)
      row = exec(TEMPLATE, [namespace, name, version]).first
      [row["version"], JSON.parse(row["definition"], max_nesting: false)] if row
    end

    # @return [Array<String>] namespace/name of all registered templates
    def template_names
      exec("SELECT DISTINCT namespace || '/' || name AS name FROM tasker.task_templates").map { |row| row["name"] }
    end

    private

    def answer(sql, values)
      row = exec(sql, values).first
      JSON.parse(row["answer"], max_nesting: false) if row
    end

    def exec(sql, values = [])
      if @connection.nil? then TaskerCore.database.exec(sql, values)
      elsif @connection.respond_to?(:exec_params) then @connection.exec_params(sql, values)
      else
        ActiveRecordDatabase.new(@connection).exec(sql, values)
      end
    rescue StandardError => e
      raise ErrorMapping.translate(e) || e
    end
  end
end
