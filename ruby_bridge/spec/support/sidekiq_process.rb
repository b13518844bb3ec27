# frozen_string_literal: true

require "tempfile"

# The real `sidekiq` program, in a process of its own.
class SidekiqProcess
  include Eventually

  LIB = File.expand_path("../../lib", __dir__)
  APPS = File.expand_path("../apps", __dir__)

  attr_reader :redis, :redis_url, :pid

  # @param app [String] folder in spec/apps, or a file in it
  # @param servers [Hash] redis_url:, database_url:; else an empty Redis, and the run's database
  def self.run(app, *options, env: {}, **servers)
    process = new(app, *options, env:, **servers)
    process.start
    yield process
  ensure
    process&.kill
  end

  def initialize(app, *options, env: {}, redis_url: TestRedis.take, database_url: TestDatabase.url)
    @database_url = database_url
    @redis_url = redis_url
    @redis = Redis.new(url: redis_url)
    @log = Tempfile.new("sidekiq")
    @command = ["sidekiq", "-r", File.join(APPS, app), "-q", "default", "-c", "5", "-e", "test", *options]
    @env = { "RUBYLIB" => LIB, "REDIS_URL" => redis_url, "TASKER_DATABASE_URL" => database_url, "BUNDLE_GEMFILE" => nil, **env }
  end

  def start
    @pid = spawn(@env, *@command, out: @log.path, err: @log.path, chdir: APPS)
    eventually("sidekiq is up:\n#{output}") { registered? || (exited? && raise("sidekiq ended:\n#{output}")) }
  end

  def output = File.read(@log.path)

  def push(step) = push_payload(JSON.generate(payload(step)))

  # As the engine does: the set of queues first, then the job.
  def push_payload(json)
    redis.multi do |transaction|
      transaction.sadd("queues", "default")
      transaction.lpush("queue:default", json)
    end
  end

  def payload(step)
    now = Time.now.to_f.floor(6)
    { "class" => "TaskerCore::StepJob", "args" => [step.arguments], "queue" => "default", "jid" => format("%024x", step.step_id),
      "retry" => false, "created_at" => now, "enqueued_at" => now }
  end

  def processed = redis.get("stat:processed").to_i

  def term = Process.kill("TERM", @pid)

  # @return [Process::Status] once it has ended by itself
  def wait_for_end
    eventually("sidekiq ends:\n#{output}", within: 30) { exited? }
  end

  def kill
    return if @pid.nil? || exited?

    Process.kill("KILL", @pid)
    Process.wait(@pid)
  end

  # Row of tasker.processes.
  def registration
    PG.connect(@database_url) do |connection|
      connection.exec_params("SELECT * FROM tasker.processes WHERE details ->> 'pid' = $1 ORDER BY process_id DESC LIMIT 1", [@pid.to_s]).first
    end
  end

  private

  def registered? = redis.scard("processes").positive? && (!registration.nil? || @env["TASKER_DATABASE_URL"].nil?)

  def exited?
    return @status if @status

    _, @status = Process.wait2(@pid, Process::WNOHANG)
    @status
  end
end
