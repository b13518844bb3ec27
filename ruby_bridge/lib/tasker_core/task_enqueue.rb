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
              carrier: "jsonb" }.freeze

    # @param arguments [Hash{Symbol => Object}] those that are nil are left to the function's defaults
    def initialize(arguments)
      @arguments = { **arguments, carrier: CurrentValues.carrier }.compact
    end

    # @param connection [PG::Connection, ActiveRecord::ConnectionAdapters::AbstractAdapter, nil]
    # @return [Integer] task_id
    # @raise [TaskRefusedError] the error of the driver is its cause
    def call(connection)
      values = arguments_as_text
      answer = if connection.respond_to?(:exec_params)
                 connection.exec_params(sql, values)
               else
                 ActiveRecordDatabase.new(connection).exec(sql, values)
               end
      answer.first["task_id"].to_i
    rescue PG::Error => e
      raise refusal(e) || e
    rescue StandardError => e
      raise (e.cause.is_a?(PG::Error) && refusal(e.cause)) || e
    end

    private

    def sql
      arguments = @arguments.keys.each.with_index(1).map { |name, position| "#{name} => $#{position}::#{TYPES.fetch(name)}" }
      "SELECT tasker.enqueue_task(#{arguments.join(', ')}) AS task_id"
    end

    def arguments_as_text
      @arguments.map do |name, value|
        case name
        when :context then context_json(value)
        when :tags then PG::TextEncoder::Array.new.encode(Array(value).map(&:to_s))
        when :run_at, :deadline then time(value)
        else value.to_s
        end
      end
    end

    # A String is Postgres's to understand.
    def time(value) = value.is_a?(String) ? value : JsonTree.build(value.to_time)

    def context_json(context)
      JSON.generate(JsonTree.build(context), max_nesting: 0)
    rescue JsonTree::Refused => e
      raise TaskRefusedError, "the context is not JSON: #{e.message}"
    end

    # The engine's own refusals, and the data of the caller. What the
    # connection or another transaction caused (deadlock, timeout) goes through
    # as it is: the app may know how to deal with it.
    def refusal(error)
      result = error.respond_to?(:result) ? error.result : nil
      state = result&.error_field(PG::PG_DIAG_SQLSTATE).to_s
      return unless state.start_with?("TK", "22", "23")

      text = [PG::PG_DIAG_MESSAGE_PRIMARY, PG::PG_DIAG_MESSAGE_HINT].filter_map { |field| result.error_field(field) }
      TaskRefusedError.new(text.join(" – "))
    end
  end
end
