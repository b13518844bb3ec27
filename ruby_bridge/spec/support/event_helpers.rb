# frozen_string_literal: true

# Writes events, as the engine would, and reads what becomes of subscribers.
module EventHelpers
  # @return [Integer] event_id
  def write_event(name, task_id: nil, step_id: nil, data: nil, on: TestDatabase.connection)
    on.exec_params("INSERT INTO tasker.events (task_id, step_id, name, data) VALUES ($1, $2, $3, $4) RETURNING event_id",
                   [task_id, step_id, name, data && JSON.generate(data)]).getvalue(0, 0).to_i
  end

  # Many, in transactions of a hundred; without a task.
  def write_events(name, count)
    (count / 100).times do
      TestDatabase.connection.exec_params("INSERT INTO tasker.events (name) SELECT $1 FROM generate_series(1, 100)", [name])
    end
  end

  def lag_of(name) = TestDatabase.row("SELECT * FROM tasker.event_lag WHERE name = $1", name) || {}

  def asleep?(name) = TestDatabase.value("SELECT count(*) FROM tasker.event_sleepers WHERE name = $1", name) == "1"

  def monotonic = Process.clock_gettime(Process::CLOCK_MONOTONIC)

  # A Thread::Queue that fails instead of waiting for ever.
  def take(queue, within: Eventually::DEADLINE_SECONDS)
    eventually("an event arrives", within:) { queue.pop unless queue.empty? }
  end

  # In an example's own transaction, on a connection of its own.
  def open_transaction
    connection = PG.connect(TestDatabase.url)
    connection.exec("BEGIN")
    yield connection
  ensure
    connection&.close
  end

  # Each example begins with no subscriber and no event.
  def self.included(group)
    group.before { TestDatabase.connection.exec("TRUNCATE tasker.events, tasker.event_subscribers, tasker.event_sleepers RESTART IDENTITY") }
  end
end

# Reads and acknowledges, like a client in any language.
class EventReader
  attr_reader :cursor

  def initialize(name, holder: "me", connection: TestDatabase.connection)
    @name = name
    @holder = holder
    @connection = connection
  end

  # @return [Array<Integer>, nil] event_ids
  def read(most = 100, acknowledge: true)
    rows = @connection.exec_params("SELECT event_id, cursor FROM tasker.next_events($1, $2, $3)", [@name, @holder, most]).to_a
    return if rows.empty?

    @cursor = rows.pop["cursor"]
    acknowledge(nil) if acknowledge
    rows.map { |row| row["event_id"].to_i }
  end

  def acknowledge(up_to)
    @connection.exec_params("SELECT tasker.acknowledge_events($1, $2, $3, $4)", [@name, @holder, @cursor, up_to]).getvalue(0, 0) == "t"
  end
end
