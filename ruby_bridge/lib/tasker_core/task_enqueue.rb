# frozen_string_literal: true

require "json"
require "pg"

module TaskerCore
  # One call of tasker.enqueue_task, on the connection of whoever asks: the
  # task starts if and only if their transaction commits.
  class TaskEnqueue
    TYPES = { namespace: "text", name: "text", context: "jsonb", version: "text", priority: "smallint", run_at: "timestamptz",
              idempotency_key: "text", on_duplicate: "text", correlation_id: "text", tags: "text[]",
              initiator: "text", source_system: "text", reason: "text", deadline: "timestamptz", parent_task_id: "bigint",
              bypass_steps: "text[]", carrier: "jsonb" }.freeze

    # @param arguments [Hash{Symbol => Object}] those that are nil are left to the function's defaults
    def initialize(arguments)
      @arguments = { **arguments, carrier: TaskCarrier.to_json(*arguments.values_at(:namespace, :name)) }.compact
    end

    # @param connection [PG::Connection, ActiveRecord::ConnectionAdapters::AbstractAdapter, nil]
    # @return [Integer] task_id
    # @raise [TaskRefusedError] the error of the driver is its cause
    def call(connection) = exec(connection, sql)["task_id"].to_i

    # The same, and what steps the task has, in one round trip.
    #
    # @return [Array(Integer, Hash{String => Integer})] task_id, and the steps' names with their ids
    # @raise (see #call)
    def call_with_steps(connection)
      row = exec(connection, "SELECT t.task_id, tasker.step_ids(t.task_id)::text AS steps FROM (#{sql} OFFSET 0) t")
      [row["task_id"].to_i, JSON.parse(row["steps"])]
    end

    private

    def exec(connection, statement)
      values = arguments_as_text
      answer = if connection.respond_to?(:exec_params)
                 connection.exec_params(statement, values)
               else
                 ActiveRecordDatabase.new(connection).exec(statement, values)
               end
      answer.first
    rescue StandardError => e # PG's own, or ActiveRecord's
      raise refusal(e) || e
    end

    def sql
      arguments = @arguments.keys.each.with_index(1).map { |name, position| "#{name} => $#{position}::#{TYPES.fetch(name)}" }
      "SELECT tasker.enqueue_task(#{arguments.join(', ')}) AS task_id"
    end

    def arguments_as_text
      @arguments.map do |name, value|
        case name
        when :context then context_json(value)
        when :tags, :bypass_steps then PG::TextEncoder::Array.new.encode(Array(value).map(&:to_s))
        when :run_at, :deadline then time(value)
        else value.to_s
        end
      end
    end

    # A String is Postgres's to understand.
    def time(value) = value.is_a?(String) ? value : JsonTree.build(PointInTime.of(value))

    def context_json(context)
      JSON.generate(JsonTree.build(context), max_nesting: 0)
    rescue JsonTree::Refused => e
      raise TaskRefusedError, "the context is not JSON: #{e.message}"
    end

    # The engine's own refusals, and the data of the caller. What the
    # connection or another transaction caused (deadlock, timeout) goes through
    # as it is: the app may know how to deal with it.
    def refusal(error)
      translated = ErrorMapping.translate(error)
      case translated
      when TaskRefusedError then translated
      when OrchestrationError then TaskRefusedError.new(translated.message, sqlstate: translated.sqlstate)
      end
    end
  end
end
