# frozen_string_literal: true

# How long the gem's calls into an idle database take: a task is made from
# Rails' connection, and one result is reported. Prints milliseconds as JSON.
require "active_record"
require "json"
require "sidekiq"
require "tasker_core"

CALLS = Integer(ARGV.fetch(0))

ActiveRecord::Base.establish_connection(ENV.fetch("TASKER_DATABASE_URL"))
TaskerCore.configure { |config| config.logger = Logger.new($stderr, level: Logger::WARN) }
database = ActiveRecord::Base.connection

def timed
  began = Process.clock_gettime(Process::CLOCK_MONOTONIC)
  yield
  (Process.clock_gettime(Process::CLOCK_MONOTONIC) - began) * 1000
end

def quantiles(times)
  sorted = times.drop(CALLS / 10).sort # the first ones warm up
  { median: sorted[sorted.size / 2], p99: sorted[(sorted.size * 0.99).to_i], max: sorted.last }
end

handler = TaskerCore::BaseTaskHandler.new({ "name" => "idle", "namespace_name" => "bench", "version" => "0.1.0" })
request = { name: "idle", namespace: "bench", context: { order_id: 5 } }
alone = Array.new(CALLS) { timed { handler.initialize_task(request) } }
inside = Array.new(CALLS) do
  took = nil
  database.transaction { took = timed { handler.initialize_task(request) } }
  took
end

steps = Array.new(CALLS) do
  task = handler.initialize_task(request).task_id
  database.select_value(<<~SQL)
    WITH step AS (UPDATE tasker.steps SET state = 'enqueued', attempts = 1 WHERE task_id = #{task} AND position = 0 RETURNING step_id, task_id)
    INSERT INTO tasker.dispatches (step_id, task_id, attempt, queue) SELECT step_id, task_id, 1, 'default' FROM step RETURNING step_id
  SQL
end
protocol = TaskerCore.protocol
start = steps.map { |step| timed { protocol.start_attempts([[step, 1]], nil) } }
report = steps.map { |step| timed { protocol.report([TaskerCore::Report.success(step, 1, '{"ok":true}')]) } }

puts JSON.generate({ "initialize_task" => quantiles(alone), "initialize_task in a transaction" => quantiles(inside),
                     "start of an attempt" => quantiles(start), "report of a result" => quantiles(report) })
