# frozen_string_literal: true

require_relative "eventually"
require "fileutils"
require "tasker_core/testing/errors"
require "tasker_core/testing/worker_process"
require "tmpdir"

# The whole of it: a database and a Redis of its own, a `tasker worker` with
# templates, and the real `sidekiq` with an app of spec/apps.
class Engine
  include Eventually

  # Quick to notice what a test waits for.
  SETTINGS = { "TASKER_WORKER_CLOCK_EVERY" => "100ms", "TASKER_WORKER_REPAIR_EVERY" => "200ms", "TASKER_WORKER_SILENT_PROCESS" => "8s",
               "TASKER_WORKER_UNSTARTED_FOR" => "1s", "TASKER_WORKER_RECONNECT_AFTER" => "50ms" }.freeze

  def self.run(...)
    engine = new(...)
    engine.start
    yield engine
  ensure
    engine&.stop
  end

  # Sidekiq processes, and paths of gates, in the order of their making.
  attr_reader :database_url, :sidekiqs, :gates

  # @param app [String] see SidekiqProcess
  # @param templates [Array<Hash>] as their YAML would be
  # @param redis [OwnRedis, nil] nil: a database of the run's
  def initialize(app, templates, redis: nil)
    @app = app
    @templates = templates
    @redis_url = redis&.url || TestRedis.take
    @name = "tasker_core_spec_#{SecureRandom.hex(6)}"
    @folder = Dir.mktmpdir
    @sidekiqs = []
    @gates = []
  end

  def start
    @templates.each { |template| File.write(File.join(@folder, "#{template[:name]}.yaml"), JSON.generate(template)) }
    @database_url = TestDatabase.migrated(@name)
    env = { **SETTINGS, "TASKER_DATABASE_URL" => database_url, "TASKER_REDIS_URL" => @redis_url }
    @worker = TaskerCore::Testing::WorkerProcess.new(ENV.fetch("TASKER_BIN"), ["--templates", @folder], env:)
    @worker.start(30)
    start_sidekiq
  end

  def start_sidekiq
    SidekiqProcess.new(@app, redis_url: @redis_url, database_url:).tap do |sidekiq|
      @sidekiqs << sidekiq
      sidekiq.start
    end
  end

  def stop
    @sidekiqs.each(&:kill)
    @worker&.stop
    @connection&.close
    TestDatabase.on_server { |server| server.exec("DROP DATABASE IF EXISTS #{@name} WITH (FORCE)") }
    FileUtils.remove_entry(@folder)
  end

  # @return [Integer] task_id
  def enqueue(name, context = {}) = TaskerCore.enqueue_task(namespace: "spec", name:, context:, connection:)

  # @return [Hash{String => String}] row of tasker.steps
  def step(task_id) = connection.exec_params("SELECT * FROM tasker.steps WHERE task_id = $1", [task_id]).first

  def error(task_id) = JSON.parse(step(task_id)["error"])

  def result(task_id) = JSON.parse(step(task_id)["result"])

  def await(task_id, state, within: DEADLINE_SECONDS)
    eventually("task #{task_id} is #{state}", within:) { value("SELECT state FROM tasker.tasks WHERE task_id = $1", task_id) == state }
  rescue RuntimeError => e
    raise "#{e.message}: #{step(task_id)}\n#{@worker.log}\n#{sidekiqs.map(&:output).join("\n")}"
  end

  # @return [String] path of what a handler of Waits waits for, when it is in the context
  def gate
    File.join(@folder, "gate#{@gates.size}").tap do |path|
      File.mkfifo(path)
      @gates << path
    end
  end

  # Nobody gets into Postgres, and nobody is in any more but this.
  def without_postgres
    own = value("SELECT pg_backend_pid()")
    TestDatabase.on_server do |server|
      server.exec("ALTER DATABASE #{@name} ALLOW_CONNECTIONS false")
      server.exec_params("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND pid <> $2", [@name, own])
      yield
    ensure
      server.exec("ALTER DATABASE #{@name} ALLOW_CONNECTIONS true")
    end
  end

  def value(sql, *values) = connection.exec_params(sql, values).getvalue(0, 0)

  private

  def connection = @connection ||= PG.connect(database_url)
end
