# frozen_string_literal: true

require "json"

module TaskerCore
  # The calls into schema tasker, one method each. docs/protocol.md explains them.
  class Protocol
    # @param database [#exec] a Database, a Connection or an ActiveRecordDatabase
    def initialize(database)
      @database = database
    end

    # @param attempts [Array<Array(Integer, Integer, Integer)>] step_id, attempt and ticket of each, no step twice;
    #   without a ticket: a worker of an earlier version made the attempt
    # @param secret [Integer, nil] the same for each try of this call: what an earlier one has started is started.
    #   Reports and heartbeats have to show it. nil: Postgres makes one
    # @return [Array<StartAnswer>] the answers in turn
    def start_attempts(attempts, process_id, secret = nil)
      step_ids, numbers, tickets = columns(attempts)
      @database.exec(StartAnswer::SQL, [step_ids, numbers, process_id, secret, tickets]).values.map { |row| StartAnswer.new(row) }
    end

    # @param attempts [Array<Array(Integer, Integer, Integer)>] as of start_attempts: they go to another process
    # @return [Integer] how many were given back
    def handler_missing(attempts, process_id)
      value("SELECT tasker.handler_missing($1, $2, $3, $4)", [*columns(attempts), process_id]).to_i
    end

    # @param reports [Array<String>] JSON, each as in contract/reports.json
    # @return [Array<String, nil>] for each in turn: nil, accepted, or why it was refused
    def report(reports)
      @database.exec("SELECT CASE WHEN NOT accepted THEN reason END AS refusal FROM tasker.report_results($1::jsonb)",
                     ["[#{reports.join(',')}]"]).map { |row| row["refusal"] }
    end

    # The same without waiting for steps that somebody's open transaction holds.
    #
    # @return [Array<String, Symbol, nil>] :held for those
    def report_free(reports)
      @database.exec("SELECT accepted, reason FROM tasker.report_results($1::jsonb, false)", ["[#{reports.join(',')}]"])
               .values.map { |accepted, reason| accepted.nil? ? :held : (reason if accepted == "f") }
    end

    # @param progress [String, nil] JSON
    # @param secret [Integer, nil] of the attempt's start
    # @return [Boolean] false: the attempt is not current any more
    def heartbeat(step_id, attempt, progress, secret = nil)
      value("SELECT tasker.heartbeat($1, $2, $3::jsonb, $4)", [step_id, attempt, progress, secret]) == "t"
    end

    # @param secret [Integer] that the process shows from now on
    # @return [Integer] the process's number
    def register_process(identity, details, secret)
      value("SELECT tasker.register_process($1, $2::jsonb, $3)", [identity, JSON.generate(details), secret]).to_i
    end

    # @param seconds [Hash{String => Float}] that handlers take, by class
    # @return [Boolean] false: the process must register again
    def process_beat(process_id, seconds, secret)
      value("SELECT tasker.process_beat($1, $2::jsonb, $3)", [process_id, JSON.generate(seconds), secret]) == "t"
    end

    def process_stopped(process_id, secret) = value("SELECT tasker.process_stopped($1, $2)", [process_id, secret])

    # @return [Array(String, Object), nil] state and result of a step; nil when the task has no such step
    def step_of_task(task_id, name)
      row = @database.exec("SELECT state, result FROM tasker.steps WHERE task_id = $1 AND name = $2", [task_id, name]).first
      [row["state"], row["result"] && JSON.parse(row["result"], max_nesting: false)] if row
    end

    # @return [Array<String>] of all steps of a task, in the order of its template
    def names_of_steps(task_id)
      @database.exec("SELECT name FROM tasker.steps WHERE task_id = $1 ORDER BY position", [task_id]).map { |row| row["name"] }
    end

    # @return [Hash{String => String}] name to state
    def states_of_steps(task_id, names)
      @database.exec("SELECT name, state FROM tasker.steps WHERE task_id = $1 AND name = ANY ($2)",
                     [task_id, PG::TextEncoder::Array.new.encode(names)]).to_h { |row| [row["name"], row["state"]] }
    end

    # @return [Hash, nil] what the task carries beside its context
    def carrier_of(task_id)
      carrier = value("SELECT carrier FROM tasker.tasks WHERE task_id = $1", [task_id])
      carrier && JSON.parse(carrier, max_nesting: false)
    end

    private

    # Arrays as Postgres writes them.
    def columns(attempts) = [0, 1, 2].map { |i| "{#{attempts.map { |attempt| attempt[i] || 'NULL' }.join(',')}}" }

    def value(sql, values) = @database.exec(sql, values).getvalue(0, 0)
  end
end
