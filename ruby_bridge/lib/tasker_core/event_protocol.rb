# frozen_string_literal: true

module TaskerCore
  # The calls into schema tasker that are about events and the ends of tasks,
  # one method each. docs/events.md explains them.
  class EventProtocol
    # What one look at the events found.
    #
    # rows:   as Event takes them
    # cursor: to be acknowledged; opaque
    Batch = Struct.new(:rows, :cursor)

    NEXT_EVENTS = <<~SQL.tr("\n", " ")
      SELECT event_id, (extract(epoch FROM occurred_at) * 1000000)::bigint, event, task_id, step_id, attempt, data,
      namespace, task_name, version, step, correlation_id, parent_task_id, cursor
      FROM tasker.next_events($1, $2, $3, $4, $5)
    SQL

    INTEGER = PG::TextDecoder::Integer.new
    TEXT = PG::TextDecoder::String.new
    ROW = PG::TypeMapByColumn.new([INTEGER, INTEGER, TEXT, INTEGER, INTEGER, INTEGER, TEXT, TEXT, TEXT, TEXT, TEXT, TEXT, INTEGER, TEXT])
    private_constant :INTEGER, :TEXT, :ROW

    # @param database [#exec] a Database, a Connection or an ActiveRecordDatabase
    def initialize(database)
      @database = database
    end

    # @param patterns [Array<String>]
    # @param start [String] "now" or "beginning", for a new subscriber
    def subscribe(name, patterns, start) = value("SELECT tasker.subscribe($1, $2, $3)", [name, array(patterns), start])

    # @return [Boolean] whether there was one
    def unsubscribe(name) = value("SELECT tasker.unsubscribe($1)", [name]) == "t"

    # @param acknowledged [String, nil] cursor of the batch before
    # @param channel [String, nil] is notified of the next event, when there is none yet
    # @return [Batch, nil] nil: another process holds the subscriber
    def next_events(name, holder, most, acknowledged: nil, channel: nil)
      result = @database.exec(NEXT_EVENTS, [name, holder, most, acknowledged, channel])
      result.type_map = ROW
      *rows, last = result.values
      Batch.new(rows, last.last) if last
    ensure
      result&.clear
    end

    # @param up_to [Integer, nil] id of the last event of the batch that was handled; nil: all were
    # @return [Boolean] false: another process holds the subscriber
    def acknowledge_events(name, holder, cursor, up_to: nil)
      value("SELECT tasker.acknowledge_events($1, $2, $3, $4)", [name, holder, cursor, up_to]) == "t"
    end

    # @return [Boolean] false: another process holds it
    def hold_subscriber(name, holder) = value("SELECT tasker.hold_subscriber($1, $2)", [name, holder]) == "t"

    def release_subscriber(name, holder) = value("SELECT tasker.release_subscriber($1, $2)", [name, holder])

    # Says at which event the subscriber stands, and why.
    def event_failed(name, holder, event_id, failure)
      value("SELECT tasker.event_failed($1, $2, $3, $4)", [name, holder, event_id, CleanText.call(failure, limit: 2_000)])
    end

    # @param channel [String] is notified when the task ends
    # @return [Boolean] whether it has ended
    def await_task(task_id, channel) = value("SELECT tasker.await_task($1, $2)", [task_id, channel]) == "t"

    # @return [Array<Integer>] those of the tasks that are not open any more
    def ended_tasks(task_ids)
      @database.exec("SELECT tasker.ended_tasks($1) AS task_id", [array(task_ids)]).map { |row| row["task_id"].to_i }
    end

    # @return [Boolean] whether the channel is still entered for any task
    def renew_waiters(channel, task_ids) = value("SELECT tasker.renew_waiters($1, $2)", [channel, array(task_ids)]) == "t"

    private

    def value(sql, values) = @database.exec(sql, values).getvalue(0, 0)

    def array(values) = PG::TextEncoder::Array.new.encode(values)
  end
end
