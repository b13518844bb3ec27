# frozen_string_literal: true

module TaskerCore
  # The calls into schema tasker that are about events and the ends of tasks,
  # one method each. docs/events.md explains them.
  class EventProtocol
    # @param database [#exec] a Database, a Connection or an ActiveRecordDatabase
    def initialize(database)
      @database = database
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
