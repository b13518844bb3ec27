# frozen_string_literal: true

require "active_record"
require "timeout"

# What handlers, Redis and Postgres may do to the gem, with the whole of it: a
# worker and real Sidekiq processes. Where each kind is looked at:
#
#   Postgres is gone     here; step_job_spec (when Postgres is away), report_queue_spec, process_registration_spec,
#                        sidekiq_spec (connects again), patience_spec
#   Redis is gone        here
#   never returns        here; step_job_spec, sidekiq_spec (given up at the shutdown)
#   raises, throws,      here, that the process goes on; step_job_spec (a failure, without a way out), sidekiq_spec,
#   exits                transactional_handler_spec (thrown out of a transaction)
#   the process dies     here
#   leaks a transaction  here
#   returns too much,    here, in the process; step_job_spec, result_json_spec, json_tree_spec, types_spec
#   or no JSON
#   mutates its inputs   here; contexts_spec
#   unknown handler      step_job_spec, sidekiq_spec, handler_lookup_spec
#   versions of the      step_job_spec: version 1 (arguments are those of the contract), 2 (several attempts in one job),
#   arguments            unknown ones; here, what becomes of an attempt whose job no process understood
#   forged jobs          here; step_job_spec (arguments)
RSpec.describe "Bad input" do
  # Each handler of spec/apps/plain/bad.rb is the only step of a template, and has one attempt.
  def templates
    names = %w[Fine Waits Raises Throws Exits ExitsAtOnce ReturnsTooMuch ReturnsAnObject Mutates NeverReturns]
    names.map do |name|
      step = { name: "work", handler_class: "Bad::#{name}", default_retry_limit: 1, timeout_seconds: name == "NeverReturns" ? 0.2 : 0 }
      { namespace_name: "spec", name: name.downcase, step_templates: [step] }
    end
  end

  def run_engine(redis = nil, &) = Engine.run("plain/bad.rb", templates, redis:, &)

  # Returns when the handler waits; it goes on when the pipe is closed.
  def open_gate(path) = Timeout.timeout(Eventually::DEADLINE_SECONDS) { File.open(path, "w") }

  it "may be a Postgres that is gone while a handler runs: its result waits, and is reported" do
    run_engine do |engine|
      task_id = engine.enqueue("waits", { gate: gate = engine.gate })
      running = open_gate(gate)
      engine.without_postgres do
        running.close
        eventually("the report is refused") { engine.sidekiqs.first.output.include?("cannot report 1 attempts yet") }
      end
      engine.await(task_id, "complete")

      expect(engine.result(task_id)).to eq("attempt" => 1)
      engine.await(engine.enqueue("fine"), "complete")
    end
  end

  it "may be a Postgres that is gone for longer than a process may be silent: what ran there may run again, once" do
    run_engine do |engine|
      task_id = engine.enqueue("waits", { gate: gate = engine.gate })
      running = open_gate(gate)
      log = -> { engine.sidekiqs.first.output }
      engine.without_postgres do
        engine.value("UPDATE tasker.processes SET last_seen_at = now() - interval '1 hour' RETURNING 1")
        running.close
        eventually("beats are missed") { log.call.include?("misses its heartbeat") }
      end
      eventually("the process beats") { log.call.include?("beats again") }
      again = Thread.new { loop { open_gate(gate).close } }
      engine.await(task_id, "complete")

      expect(engine.step(task_id)["losses"].to_i).to be <= 1
    ensure
      again&.kill
    end
  end

  it "may be a Redis that is gone while a handler runs, and comes back empty" do
    OwnRedis.run do |redis|
      run_engine(redis) do |engine|
        running = engine.enqueue("waits", { gate: gate = engine.gate })
        pipe = open_gate(gate)
        redis.kill
        pipe.close
        engine.await(running, "complete")
        waiting = engine.enqueue("fine")
        eventually("the worker has claimed it") { engine.step(waiting)["state"] == "enqueued" }
        redis.start
        engine.await(waiting, "complete", within: 40)

        expect([running, waiting].map { |task_id| engine.result(task_id)["attempt"] }).to eq([1, 1])
      end
    end
  end

  it "may be handlers that fail in every way: the process goes on" do
    run_engine do |engine|
      task_ids = %w[Raises Throws Exits ReturnsTooMuch ReturnsAnObject Mutates NeverReturns].to_h do |name|
        [name, engine.enqueue(name.downcase, { order: { id: 5 } })]
      end
      task_ids.each_value { |task_id| engine.await(task_id, "error") }

      errors = task_ids.transform_values { |task_id| engine.error(task_id).values_at("class", "code", "message") }
      expect(errors).to match(
        "Raises" => ["Exception", nil, "of its own making"],
        "Throws" => ["UncaughtThrowError", nil, "uncaught throw :out"],
        "Exits" => ["SystemExit", nil, "exit"],
        "ReturnsTooMuch" => ["TaskerCore::ResultTooLargeError", "result_too_large", /10485771 bytes of JSON, 4194304 are allowed.*\$\.text/],
        "ReturnsAnObject" => ["TaskerCore::ResultNotSerializableError", "result_not_serializable", /\$\.thread is a Thread/],
        "Mutates" => ["FrozenError", nil, /can't modify frozen/],
        "NeverReturns" => [anything, "attempt_timeout", /0.2/]
      )
      fine = engine.enqueue("fine")
      engine.await(fine, "complete")
      expect(engine.result(fine)["pid"].to_s).to eq(engine.sidekiqs.first.pid.to_s)
    end
  end

  it "may be a handler that takes its process with it: the attempt runs again elsewhere, and isn't counted" do
    run_engine do |engine|
      task_id = engine.enqueue("exitsatonce")
      expect(engine.sidekiqs.first.wait_for_end.exitstatus).to eq(3)
      engine.start_sidekiq
      engine.await(task_id, "complete", within: 40)

      expect(engine.result(task_id)).to eq("attempt" => 2, "used" => 1)
    end
  end

  describe "a forged or malformed job in the queue" do
    def job(args, klass: "TaskerCore::StepJob")
      JSON.generate({ "class" => klass, "args" => args, "queue" => "default", "jid" => SecureRandom.hex(12), "retry" => false,
                      "created_at" => Time.now.to_f, "enqueued_at" => Time.now.to_f })
    end

    # The last two are of steps that there are.
    def forged(step, other)
      one = { "v" => 1, "step_id" => 999_999, "attempt" => 1, "task_id" => 1, "handler" => "Bad::Fine" }
      junk = "x" * (1 << 20)
      [
        job([one]), job([one.merge("attempt" => 2**31)]), job([one.merge("step_id" => 10**30)]), job([one.merge("step_id" => "1; DROP TABLE tasker.steps")]),
        job([one.merge("step_id" => 1.5)]), job([one.merge("attempt" => nil)]), job([one.merge("step_id" => { "a" => [1] })]),
        job([one.merge("v" => 99)]), job([one.merge("v" => "1")]), job([one.merge("v" => [])]), job([]), job([nil]), job([one, one]), job("none"),
        job([one.merge("step_id" => junk)]), job([one.merge("handler" => junk)]), job([{ "v" => 2, "attempts" => [[junk, 1]] }]),
        job([{ "v" => 2, "attempts" => [[1, 1, 1, 1]] }]), job([{ "v" => 2, "attempts" => { "1" => 1 } }]), job([[[[[]]]]]),
        job([one], klass: "Kernel"), job([one], klass: "TaskerCore::Nothing"), job([one], klass: "Bad::Fine"), job([one], klass: "TaskerCore::BaseStepHandler"),
        "no JSON", "[]", "null", "{}",
        job([one.merge("step_id" => step.step_id, "attempt" => 7)]),
        job([one.merge("step_id" => step.step_id, "attempt" => other.attempt, "task_id" => other.task_id, "handler" => "Bad::Raises")])
      ]
    end

    it "starts nothing but what Postgres says, and ends no process" do
      SidekiqProcess.run("plain/bad.rb", "-c", "1") do |sidekiq|
        step = dispatch("Bad::Fine")
        other = dispatch("Bad::Fine")
        jobs = forged(step, other)
        jobs.each { |text| sidekiq.push_payload(text) }
        sidekiq.push(other)
        eventually("the last job is done:\n#{sidekiq.output[-2000..]}") { other.state == "complete" }

        # The last of the forged named a step and an attempt that is current, and could not know its ticket.
        expect([step.state, step.events]).to eq(["enqueued", []])
        expect(other.events).to eq(%w[step.handle step.completed])
        expect(other.result["pid"]).to eq(sidekiq.pid)
        expect(sidekiq.redis.lrange("errors", 0, -1).map(&:size)).to all(be < 10_000)
      end
    end

    it "that no process understood is no loss: the attempt is pushed again" do
      run_engine do |engine|
        blocked = Array.new(5) { engine.enqueue("waits", { gate: engine.gate }) }
        pipes = engine.gates.map { |path| open_gate(path) }
        task_id = engine.enqueue("fine")
        redis = engine.sidekiqs.first.redis
        text = eventually("its job is in the queue") { redis.rpop("queue:default") }
        newer = JSON.parse(text)
        newer["args"].first["v"] = 99
        redis.lpush("queue:default", JSON.generate(newer))
        pipes.each(&:close)
        [task_id, *blocked].each { |id| engine.await(id, "complete", within: 40) }

        expect(engine.result(task_id)["attempt"]).to eq(1)
        expect(redis.lrange("errors", 0, -1)).to include(/ProtocolError: arguments of version 99; .* understands 1 and 2: update the gem/)
      end
    end
  end

  describe "a transaction that a handler leaves open" do
    before do
      use_test_database
      ActiveRecord::Base.establish_connection(TestDatabase.url)
      connection.raw_connection.set_notice_processor { |_message| nil }
      TestDatabase.connection.exec("CREATE TABLE ledger (step_id bigint)")
    end

    after do
      ActiveRecord::Base.remove_connection
      TestDatabase.connection.exec("DROP TABLE ledger")
    end

    def connection = ActiveRecord::Base.connection

    def ledger = TestDatabase.connection.exec("SELECT step_id FROM ledger ORDER BY 1").column_values(0).map(&:to_i)

    # A step whose handler writes, after what the block does.
    def writing(name, *traits, &before)
      stub_const(name, Class.new(TaskerCore::BaseStepHandler) do
        traits.each { |trait| public_send(trait) }
        define_method(:process) do |_task, _sequence, step|
          before&.call
          ActiveRecord::Base.connection.execute("INSERT INTO ledger VALUES (#{step.step_id})")
          raise "and fails" if name == "LeaksAndFails"

          "written"
        end
      end)
      dispatch(name)
    end

    def performed(step)
      perform(step)
      nil
    rescue StandardError => e
      e
    end

    {
      "by SQL" => -> { ActiveRecord::Base.connection.execute("BEGIN") },
      "by ActiveRecord" => -> { ActiveRecord::Base.connection.begin_transaction },
      "twice" => -> { 2.times { ActiveRecord::Base.connection.begin_transaction } }
    }.each do |how, leak|
      it "#{how} is rolled back and fails the attempt, and the next job's writes are committed" do
        leaking = writing("Leaks", &leak)
        following = [writing("Plain"), writing("Together", :transactional)]

        expect(performed(leaking)).to be_a(TaskerCore::Error)
          .and have_attributes(message: /the handler left a transaction open on .*rolled back.*let ActiveRecord::Base.transaction/)
        following.each { |step| perform(step) }
        expect(leaking.failure).to include("class" => "TaskerCore::Error", "permanent" => false)
        expect(following.map(&:state)).to eq(%w[complete complete])
        expect(ledger).to eq(following.map(&:step_id))
      end
    end

    it "within a transactional handler is rolled back with it" do
      leaking = writing("Leaks", :transactional) { ActiveRecord::Base.connection.begin_transaction }
      following = writing("Together", :transactional)

      expect(performed(leaking)).to be_a(TaskerCore::Error)
      perform(following)
      expect(leaking.failure).to include("class" => "TaskerCore::Error")
      expect(ledger).to eq([following.step_id])
    end

    it "by one that fails is rolled back, and the failure stays what it was" do
      leaking = writing("LeaksAndFails") { ActiveRecord::Base.connection.execute("BEGIN") }

      expect(performed(leaking)).to have_attributes(message: "and fails")
      expect(logged).to include("left a transaction open")
      expect([connection.raw_connection.transaction_status, ledger]).to eq([PG::PQTRANS_IDLE, []])
    end

    it "on a connection that broke is given up with the connection" do
      leaking = writing("Leaks") { ActiveRecord::Base.connection.begin_transaction }
      Leaks.define_method(:process_results) do |_step, output, _initial|
        pid = ActiveRecord::Base.connection.select_value("SELECT pg_backend_pid()")
        TestDatabase.value("SELECT pg_terminate_backend($1, 5000)", pid)
        output
      end

      expect(performed(leaking)).to be_a(TaskerCore::Error)
      perform(following = writing("Plain"))
      expect(ledger).to eq([following.step_id])
    end

    it "of whoever called, as around a test, is left alone" do
      step = writing("Plain")
      ActiveRecord::Base.transaction do
        TaskerCore::HandlerSurroundings.new(TaskerCore.config).call(nil, nil) { connection.execute("INSERT INTO ledger VALUES (#{step.step_id})") }
      end

      expect(ledger).to eq([step.step_id])
    end
  end
end
