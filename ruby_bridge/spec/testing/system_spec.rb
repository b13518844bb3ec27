# frozen_string_literal: true

require "tasker_core/testing/rspec"
require "tmpdir"

RSpec.describe "TaskerCore::Testing::System" do
  let(:redis_url) { TestRedis.take }
  let(:folder) { Dir.mktmpdir }
  let(:name) { "system_#{SecureRandom.hex(4)}" }

  attr_reader :connection

  # Of its own: it travels, and drains whatever is open.
  around do |example|
    TestDatabase.separate do |url|
      @connection = PG.connect(url)
      TaskerCore.configure do |config|
        config.database_url = url
        config.logger = Logger.new(log)
      end
      example.run
    ensure
      @connection&.close
    end
  end

  def value(sql, *values) = connection.exec_params(sql, values).getvalue(0, 0)

  def open_system(**options, &)
    TaskerCore::Testing::System.open(redis_url:, templates: folder, binary: ENV.fetch("TASKER_BIN"), **options, &)
  end

  def template(steps, **members)
    File.write(File.join(folder, "#{name}.yaml"), JSON.generate({ name:, namespace_name: "spec", step_templates: steps, **members }))
  end

  def enqueue(**options) = TaskerCore.enqueue_task(namespace: "spec", name:, connection:, **options)

  def handler(name, &)
    stub_const(name, Class.new(TaskerCore::BaseStepHandler) { define_method(:process, &) })
  end

  # Takes the jobs of so many attempts out of their queue, and puts them there again as one.
  def push_together(redis, count)
    attempts = []
    eventually("all are in the queue") do
      job = redis.rpop("queue:default")
      attempts += JSON.parse(job)["args"].flat_map { |given| given["attempts"] || [given.values_at("step_id", "attempt")] } if job
      attempts.size == count
    end
    job = contract("sidekiq_bundle")["job"]
    redis.lpush("queue:default", JSON.generate({ **job, "args" => [{ **job["args"].first, "attempts" => attempts.sort }] }))
  end

  it "runs Ruby steps here, between the steps of the worker" do
    threads = []
    handler("Sys::Double") { |task, sequence, _| { n: sequence.results_of("first")["n"] + task["n"] }.tap { threads << Thread.current } }
    template([{ name: "first", handler: "tasker.echo", handler_config: { n: 40 } },
              { name: "double", handler_class: "Sys::Double", depends_on_step: "first", queue: "slow" },
              { name: "last", handler: "tasker.echo", depends_on_step: "double" }])

    open_system do |system|
      run = system.drain(enqueue(context: { n: 2 }))

      expect(run).to be_complete
      expect(run).to have_completed_steps("first", "double", "last")
      expect(run["double"].result).to eq("n" => 42)
      expect(run.attempts.map { |attempt| [attempt.step, attempt.number, attempt.state, attempt.outcome] })
        .to match([["first", 1, "complete", be_step_success], ["double", 1, "complete", be_step_success.with("n" => 42)],
                   ["last", 1, "complete", be_step_success]])
      expect(run.events.map(&:name)).to include("task.start_requested", "step.execution_requested", "task.completed")
      expect(threads).to eq([Thread.current])
      expect(system.log).to include("worker takes tasks")
    end
  end

  it "stands when only time helps, and goes on when it was let pass" do
    handler("Sys::Picky") { |_, _, step| step.attempt == 1 ? raise(TaskerCore::RetryableError.new("busy", retry_after: 300)) : step.attempt }
    template([{ name: "only", handler_class: "Sys::Picky" }], deadline_seconds: 3600)

    open_system(travel: true) do |system|
      first = enqueue
      run = system.drain(first)
      expect([run.state, run["only"].state, run["only"].error["message"]]).to eq(%w[in_progress waiting_for_retry busy])
      expect(run["only"].attempts.first.outcome).to be_retryable.after(300)
      tomorrow = enqueue(run_at: Time.now + 86_400)
      expect(system.drain(tomorrow).state).to eq("pending")

      TaskerCore::Testing.travel(300)
      run = system.drain(first)
      expect([run.state, run["only"].result]).to eq(["complete", 2])
      expect(run["only"].attempts.last.at).to be_between(300, 330)
      system.travel(86_400)
      expect(system.drain(tomorrow)["only"].attempts.length).to eq(1)
      system.travel(3600)
      expect(system.task(tomorrow).error).to include("code" => "task_deadline")
    end
    expect(TaskerCore::Testing.system).to be_nil
  end

  it "reports what handlers raise, and lets assertions through" do
    handler("Sys::Declined") { |*| raise TaskerCore::PermanentError.new("no", error_code: "declined") }
    handler("Sys::Asserts") { |*| RSpec::Expectations.fail_with("not what the test expects") }
    template([{ name: "declined", handler_class: "Sys::Declined" },
              { name: "asserts", handler_class: "Sys::Asserts", depends_on_step: "declined", default_retry_limit: 1 }])

    open_system do |system|
      run = system.drain(enqueue)
      expect(run).to be_failed
      expect(run["declined"].attempts.first.outcome).to be_step_failure.with_code("declined").and be_permanent

      value("SELECT tasker.skip_step($1)", value("SELECT step_id FROM tasker.steps s JOIN tasker.tasks t USING (task_id) " \
                                                 "WHERE t.name = $1 AND s.name = 'declined'", name))
      expect { system.drain }.to raise_error(RSpec::Expectations::ExpectationNotMetError, "not what the test expects")
    end
  end

  it "waits for a limit that only other attempts hold, and not for one that time lifts" do
    handler("Sys::Nothing") { |*| nil }
    template([{ name: "only", handler_class: "Sys::Nothing" }])

    open_system(travel: true) do |system|
      value("SELECT tasker.set_limit('template', $1, 1)", "spec/#{name}")
      ids = Array.new(3) { enqueue }
      expect(system.drain(ids.last)).to be_complete
      system.drain
      value("SELECT tasker.set_limit('template', $1, NULL, 0.01, 1)", "spec/#{name}")
      ids = Array.new(2) { enqueue }
      system.drain
      expect(ids.map { |id| system.task(id).state }.sort).to match(["complete", eq("in_progress").or(eq("pending"))])
      system.travel(100)
      system.drain
      expect(ids.map { |id| system.task(id) }).to all(be_complete)
    end
  end

  it "runs jobs of several attempts, each as if it were alone" do
    threads = []
    handler("Sys::Number") do |task, *|
      threads << Thread.current
      task["n"] == 2 ? raise(TaskerCore::PermanentError, "two") : task["n"]
    end
    template([{ name: "only", handler_class: "Sys::Number" }])
    redis = Redis.new(url: redis_url)

    open_system do |system|
      ids = Array.new(3) { |n| enqueue(context: { n: n + 1 }) }
      push_together(redis, 3)
      system.drain
      runs = ids.map { |id| system.task(id) }

      expect(runs.map { |run| [run.state, run["only"].result] }).to eq([["complete", 1], ["error", nil], ["complete", 3]])
      expect(runs.map { |run| run["only"].attempts.map(&:number) }).to eq([[1]] * 3)
      expect(threads).to eq([Thread.current] * 3)
    end
  end

  it "lets an assertion through that fails in a job of several attempts, and the others run again" do
    handler("Sys::Asserts") { |task, *| task["fails"] ? RSpec::Expectations.fail_with("not what the test expects") : 1 }
    template([{ name: "only", handler_class: "Sys::Asserts" }])
    redis = Redis.new(url: redis_url)

    open_system do |system|
      ids = [true, false].map { |fails| enqueue(context: { fails: }) }
      push_together(redis, 2)

      expect { system.drain }.to raise_error(RSpec::Expectations::ExpectationNotMetError, "not what the test expects")
      expect(system.drain(ids.last)["only"].result).to eq(1)
    end
  end

  it "leaves the app's other jobs in their queue" do
    handler("Sys::Nothing") { |*| nil }
    template([{ name: "only", handler_class: "Sys::Nothing" }])
    redis = Redis.new(url: redis_url)
    jobs = %w[1 2].map { |jid| JSON.generate("class" => "Other", "args" => [], "jid" => jid) }
    redis.lpush("queue:default", jobs)

    open_system { |system| expect(system.drain(enqueue)).to be_complete }
    expect(redis.lrange("queue:default", 0, -1)).to eq(jobs.reverse)
  end

  it "says what a task waits for that doesn't come to rest" do
    template([{ name: "slow", handler: "tasker.sleep", handler_config: { seconds: 60 } }])

    open_system(options: ["--shutdown-timeout", "1ms"]) do |system|
      id = enqueue
      expect { system.drain(id, timeout: 0.2) }.to raise_error(TaskerCore::Testing::SystemError, /\Anot at rest after 0\.2 s:\ntask #{id}, slow: /)
    end
  end

  it "refuses to travel in a database that is not marked" do
    template([{ name: "only", handler: "tasker.echo" }])

    open_system do |system|
      expect { system.travel(1) }.to raise_error(TaskerCore::DatabaseError, /time travel is for test databases.* – ALTER DATABASE \w+ SET tasker.testing = on/)
      expect { system.travel(-1) }.to raise_error(TaskerCore::Testing::InputError)
    end
  end

  it "says why it can't start" do
    expect { open_system(binary: "/nowhere") { nil } }.to raise_error(TaskerCore::ConfigurationError, %r{no program /nowhere: set TASKER_BINARY})
    expect { open_system(templates: "/nowhere") { nil } }.to raise_error(TaskerCore::Testing::SystemError, %r{\Athe worker ended .*:\n.*/nowhere}m)
  end

  it "leaves no worker behind" do
    template([{ name: "only", handler: "tasker.echo" }])
    pid = nil
    expect { open_system { |system| pid = system.instance_variable_get(:@worker).instance_variable_get(:@pid) and raise "broken" } }.to raise_error("broken")
    expect { Process.kill(0, pid) }.to raise_error(Errno::ESRCH)
  end

  it "hands the database on as the worker reads it" do
    expect(TaskerCore::Testing::System.conninfo({ host: "h", port: "1", password: "it's \\", keepalives: 1, hostaddr: nil }))
      .to eq("host='h' port='1' password='it\\'s \\\\'")
  end
end
