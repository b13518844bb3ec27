# frozen_string_literal: true

require "json"

module TaskerCore
  module Testing
    # Reads what became of a task from the tables.
    class StoredRun
      TASK = <<~SQL
        SELECT namespace || '/' || name || '@' || version AS template, state, error,
               extract(epoch FROM coalesce(finished_at, clock_timestamp()) - created_at)::float8 AS elapsed
        FROM tasker.tasks WHERE task_id = $1
      SQL
      STEPS = "SELECT step_id, name, state, result, error FROM tasker.steps WHERE task_id = $1 ORDER BY position"
      EVENTS = <<~SQL
        SELECT e.name, s.name AS step, e.attempt, e.data, extract(epoch FROM e.created_at - t.created_at)::float8 AS at
        FROM tasker.events e JOIN tasker.tasks t USING (task_id) LEFT JOIN tasker.steps s USING (step_id)
        WHERE e.task_id = $1 ORDER BY e.event_id
      SQL
      BEGINS = %w[step.execution_requested step.handle].freeze
      ENDS = TaskRun::EVENTS.invert.freeze
      private_constant :TASK, :STEPS, :EVENTS, :BEGINS, :ENDS

      # @param database [#exec]
      def initialize(database, task_id)
        @database = database
        @task_id = task_id
      end

      # @return [Run]
      # @raise [InputError] there is no such task
      def call
        task = rows(TASK).first or raise InputError, "there is no task #{@task_id}"
        @steps = rows(STEPS).to_h { |row| [row["name"], row.merge("result" => json(row["result"]), "error" => json(row["error"]))] }
        events = rows(EVENTS)
        attempts = attempts(events)
        steps = @steps.transform_values do |row|
          Run::Step.new(name: row["name"], state: row["state"], result: row["result"], error: row["error"],
                        attempts: attempts.select { |attempt| attempt.step == row["name"] })
        end
        Run.new(template: task["template"], state: task["state"], error: json(task["error"]), elapsed: task["elapsed"].to_f.round(3), attempts:, steps:,
                events: events.map { |row| Run::Event.new(name: row["name"], step: row["step"], attempt: row["attempt"]&.to_i, at: at(row)) })
      end

      private

      # Those that have ended, by when they did, then those that are out.
      def attempts(events)
        of_steps = events.select { |row| row["step"] && row["attempt"] }
        begun = of_steps.select { |row| BEGINS.include?(row["name"]) }.uniq { |row| row.values_at("step", "attempt") }
        ended = of_steps.select { |row| ENDS.key?(row["name"]) }.to_h { |row| [row.values_at("step", "attempt"), row] }
        begun.sort_by.with_index { |row, index| [ended.keys.index(row.values_at("step", "attempt")) || ended.size, index] }
             .map { |row| attempt(row, ended[row.values_at("step", "attempt")]) }
      end

      def attempt(begun, ended)
        data = ended && json(ended["data"])
        Run::Attempt.new(step: begun["step"], number: begun["attempt"].to_i, at: at(begun), outcome: ended && outcome(ended, data),
                         delay: data.is_a?(Hash) ? data["retry_in_seconds"] : nil, state: ended ? ENDS.fetch(ended["name"]) : @steps[begun["step"]]["state"])
      end

      # Of an error that was overwritten by the next one, its event tells the outlines.
      def outcome(ended, data)
        step = @steps[ended["step"]]
        return Outcome.new(result: step["result"]) if ended["name"] == "step.completed"

        error = step["error"]&.fetch("attempt", nil) == ended["attempt"].to_i ? step["error"] : data
        Outcome.new(error: error || { "class" => "", "message" => "" })
      end

      def at(row) = row["at"].to_f.round(3)

      def json(text) = text && StoredJson.read(text)

      def rows(sql) = @database.exec(sql, [@task_id]).to_a
    end
  end
end
