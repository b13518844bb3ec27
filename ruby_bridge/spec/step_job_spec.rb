# frozen_string_literal: true

RSpec.describe TaskerCore::StepJob do
  before { use_test_database }

  # A handler for this example, whose process is the block.
  def handler(name = "Orders::Charge", base: TaskerCore::BaseStepHandler, &process)
    stub_const("Orders", Module.new) unless defined?(Orders)
    stub_const(name, Class.new(base) { define_method(:process, &process) if process })
    name
  end

  # Returns when the report waits for the lock that the transaction holds.
  def lock_after_start(transaction, step)
    started = Queue.new
    locked = Queue.new
    Orders::Charge.define_method(:process_results) do |_step, output, _initial|
      started << true
      locked.pop
      output
    end
    yield
    started.pop
    transaction.exec_params("SELECT FROM tasker.dispatches WHERE step_id = $1 FOR UPDATE", [step.step_id])
    locked << true
    eventually("the report waits") { TestDatabase.gem_waits_for_lock? }
  end

  def performed(step)
    perform(step)
    nil
  rescue StandardError, ScriptError => e
    e
  end

  describe "arguments" do
    it "are those of the contract" do
      arguments = contract("sidekiq_job")["job"]["args"]
      handler { |*| nil }

      described_class.new.perform(*arguments) # there is no step 42
      expect(logged).to include("step 42 attempt 1 not started: there is no step 42")
    end

    [
      {}, [1], nil, { "v" => 3, "step_id" => 1, "attempt" => 1 }, { "v" => 1, "step_id" => "1", "attempt" => 1 }, { "v" => 1, "step_id" => -1, "attempt" => 1 },
      { "v" => 2 }, { "v" => 2, "attempts" => [] }, { "v" => 2, "attempts" => [[1]] }, { "v" => 2, "attempts" => [[1, "1"]] },
      { "v" => 2, "attempts" => [[1, 1], [1, 2]] }
    ].each do |arguments|
      it "#{arguments.inspect} are refused" do
        expect { described_class.new.perform(arguments) }.to raise_error(TaskerCore::ProtocolError)
      end
    end

    it "don't choose the class that runs" do
      step = dispatch(handler { |*| "charged" })
      perform(step, handler: "Kernel")

      expect(step.result).to eq("charged")
    end
  end

  it "is never retried by Sidekiq" do
    expect(described_class.get_sidekiq_options["retry"]).to be(false)
  end

  it "runs the handler and reports its result" do
    step = dispatch(handler { |task, sequence, work| { order: task["order_id"], score: sequence[:fraud].results["score"], try: work.attempt } },
                    attempt: 2, dependencies: { "fraud" => { "score" => 3 } })
    perform(step)

    expect(step.state).to eq("complete")
    expect(step.result).to eq("order" => 5, "score" => 3, "try" => 2)
    expect(step.events).to eq(%w[step.handle step.completed])
  end

  it "is in progress, for this process, while the handler runs" do
    seen = nil
    step = nil
    handler { |*| seen = [step.state, step.process_id] }
    step = dispatch("Orders::Charge")
    perform(step)

    expect(seen).to eq(["in_progress", TaskerCore.process_registration.id])
  end

  it "reports what process_results makes of the output" do
    handler { |*| 20 }
    Orders::Charge.define_method(:process_results) { |_step, output, _initial| { total: output + 1 } }
    step = dispatch("Orders::Charge")
    perform(step)

    expect(step.result).to eq("total" => 21)
  end

  it "fails the step when process_results raises" do
    handler { |*| 20 }
    Orders::Charge.define_method(:process_results) { |*| raise KeyError, "no total" }
    step = dispatch("Orders::Charge")

    expect(performed(step)).to be_a(KeyError)
    expect(step.failure).to include("class" => "KeyError", "message" => "no total")
  end

  describe "an attempt that may not start" do
    it "is dropped when a second copy of the job comes" do
      runs = 0
      step = dispatch(handler { |*| runs += 1 })
      2.times { perform(step) }

      expect(runs).to eq(1)
      expect(step.events).to eq(%w[step.handle step.completed])
      expect(logged).to match(/INFO.*not started: attempt 1 of step #{step.step_id} \(work\) is complete/)
    end

    it "is dropped when a later attempt was dispatched" do
      runs = 0
      step = dispatch(handler { |*| runs += 1 }, attempt: 2)
      perform(step, attempt: 1)

      expect(runs).to eq(0)
      expect(step.state).to eq("enqueued")
      expect(logged).to include("is at attempt 2, not 1")
    end
  end

  it "leaves a result behind that came too late" do
    step = nil
    handler { |*| TestDatabase.connection.exec("UPDATE tasker.steps SET state = 'cancelled' WHERE step_id = #{step.step_id}") && "late" }
    step = dispatch("Orders::Charge")
    perform(step)

    expect(step.state).to eq("cancelled")
    expect(step.events).to include("step.report_refused")
    expect(logged).to match(/report of step #{step.step_id} attempt 1 \(Orders::Charge\) refused: .* is cancelled/)
  end

  describe "the handler's class" do
    {
      "Kernel" => /Kernel is not a step handler/, "File" => /File is not a step handler/
    }.each do |name, message|
      it "is refused when it is #{name}" do
        step = dispatch(name)

        expect(performed(step)).to be_a(TaskerCore::HandlerNotFoundError)
        expect(step.failure).to include("code" => "handler_not_found", "permanent" => true, "message" => message, "handler" => name)
      end
    end

    it "is waited for when there is none: another process may have it" do
      step = dispatch("Orders::Missing")

      expect(performed(step)).to be_nil
      expect([step.state, step.failure]).to eq(["enqueued", nil])
      rows = TestDatabase.connection.exec("SELECT missing_in, started_at FROM tasker.dispatches WHERE missing_since <= now() AND step_id = #{step.step_id}")
      expect(rows.values).to contain_exactly([be_a(String), nil])
      expect(logged).to match(/step #{step.step_id} attempt 1 waits for a process that has its handler: no class Orders::Missing in this Sidekiq process/)
    end

    it "may be broken in itself" do
      step = dispatch(handler)
      Orders::Charge.define_method(:initialize) { |gateway| @gateway = gateway }

      expect(performed(step)).to be_a(ArgumentError)
      expect(step.failure).to include("class" => "ArgumentError", "permanent" => false)
    end
  end

  describe "a failure" do
    it "is reported, and raised again for error trackers" do
      step = dispatch(handler { |*| raise IOError, "gateway closed" })

      expect(performed(step)).to be_a(IOError)
      expect(step.failure).to include("class" => "IOError", "message" => "gateway closed", "permanent" => false, "handler" => "Orders::Charge")
      expect(step.failure["backtrace"].first).to include("step_job_spec.rb")
    end

    it "is raised again only when no attempt follows, by default" do
      TaskerCore.config.reraise_errors = TaskerCore::Configuration.new.reraise_errors
      handler { |*| raise IOError, "gateway closed" }

      expect([1, 2, 3].map { |attempt| performed(dispatch("Orders::Charge", attempt:)).class }).to eq([NilClass, NilClass, IOError])
    end

    it "is raised again when it is permanent" do
      TaskerCore.config.reraise_errors = :final
      step = dispatch(handler { |*| raise TaskerCore::PermanentError, "declined" })

      expect(performed(step)).to be_a(TaskerCore::PermanentError)
    end

    it "is not raised again when the team doesn't want that" do
      use_test_database(reraise_errors: false)
      step = dispatch(handler { |*| raise IOError, "gateway closed" })

      expect(performed(step)).to be_nil
      expect(step.failure).to include("class" => "IOError")
    end

    it "carries the delay that a RetryableError asks for" do
      step = dispatch(handler { |*| raise TaskerCore::RetryableError.new("busy", retry_after: 7, context: { queue: 3 }) })
      performed(step)

      expect(step.failure).to include("permanent" => false, "retry_after" => 7, "context" => { "queue" => 3 })
    end

    it "carries the code of a PermanentError" do
      step = dispatch(handler { |*| raise TaskerCore::PermanentError.new("declined", error_code: "card_declined") })
      performed(step)

      expect(step.failure).to include("permanent" => true, "code" => "card_declined")
    end

    {
      "a missing method of the handler" => -> { raise NotImplementedError },
      "a file that isn't there" => -> { require "no/such/file" },
      "endless recursion" => -> { (recurse = -> { recurse.call }).call },
      "exit" => -> { exit(3) },
      "an Exception of the handler's own" => -> { raise Class.new(Exception), "own" } # rubocop:disable Lint/InheritException
    }.each do |what, body|
      it "may be #{what}" do
        step = dispatch(handler { |*| body.call })

        expect { perform(step) }.to raise_error(Exception)
        expect(step.failure).to include("class", "message", "permanent" => false)
      end
    end

    it "may carry any message" do
      step = dispatch(handler { |*| raise "caf\xE9 \0 #{'x' * 20_000}" })
      performed(step)

      expect(step.failure["message"]).to start_with("caf\u{FFFD}  xxx")
      expect(step.failure["message"].length).to eq(10_000)
    end
  end

  describe "what a handler returns" do
    {
      "NaN" => [{ items: [{ price: Float::NAN }] }, "$.items[0].price is NaN"],
      "NUL" => [["a\0"], "$[0] contains a NUL"],
      "invalid UTF-8" => [["\xFF"], "$[0] is not valid UTF-8"],
      "an object" => [{ order: Object.new }, "$.order is a Object"]
    }.each do |what, (value, message)|
      it "must not be #{what}" do
        step = dispatch(handler { |*| value })
        performed(step)

        expect(step.failure).to include("code" => "result_not_serializable", "permanent" => true, "message" => include(message))
      end
    end

    it "must not be a number that Postgres can't hold" do
      step = dispatch(handler { |*| { n: 10**200_000 } })
      perform(step)

      expect(step.failure).to include("code" => "result_not_serializable", "permanent" => true, "message" => /Postgres doesn't take/)
    end

    it "may have 1 MiB" do
      step = dispatch(handler { |*| { text: "é" * (1 << 19) } })
      perform(step)

      expect(step.result["text"].bytesize).to eq(1 << 20)
    end

    it "must not have 5 MiB" do
      step = dispatch(handler { |*| { text: "x" * (5 << 20) } })
      performed(step)

      expect(step.failure).to include("code" => "result_too_large", "permanent" => true, "message" => /\$\.text/)
    end

    it "may be nothing" do
      step = dispatch(handler { |*| nil })
      perform(step)

      expect([step.state, step.result]).to eq(["complete", nil])
    end
  end

  describe "without a way out of the handler" do
    it "is given up when Sidekiq shuts down" do
      step = dispatch(handler { |*| Thread.stop })
      thread = Thread.new { perform(step) }
      thread.report_on_exception = false
      eventually("the handler runs") { step.state == "in_progress" && thread.status == "sleep" && thread.backtrace.first.include?("stop") }
      thread.raise(Sidekiq::Shutdown)

      expect { thread.join }.to raise_error(Sidekiq::Shutdown)
      expect(step.failure).to eq("lost" => true)
    end

    it "doesn't start again when Sidekiq has put its job back" do
      runs = 0
      step = dispatch(handler { |*| (runs += 1) && raise(Sidekiq::Shutdown) })
      expect { perform(step) }.to raise_error(Sidekiq::Shutdown)
      perform(step)

      expect(runs).to eq(1)
      expect(step.failure).to eq("lost" => true)
    end

    it "is given up when a shutdown is the cause of the error" do
      handler do |*|
        raise Sidekiq::Shutdown
      rescue Sidekiq::Shutdown
        begin
          raise "first"
        rescue StandardError
          raise "second"
        end
      end
      step = dispatch("Orders::Charge")

      expect(performed(step)&.message).to eq("second")
      expect(step.failure).to eq("lost" => true)
    end

    it "is given up when the thread is killed" do
      step = dispatch(handler { |*| Thread.current.kill })
      Thread.new { perform(step) }.join

      expect(step.failure).to eq("lost" => true)
    end

    it "is given up when the handler throws past us" do
      step = dispatch(handler { |*| throw :out })
      catch(:out) { perform(step) }

      expect(step.failure).to eq("lost" => true)
    end

    it "leaves a report that is under way to the queue of reports, where there are others" do
      allow(TaskerCore).to receive(:reports).and_return(TaskerCore::ReportQueue.new(TaskerCore.protocol, lull: Float::INFINITY))
      step = dispatch(handler { |*| "charged" })
      thread = nil
      TestDatabase.connection.transaction do |transaction|
        lock_after_start(transaction, step) { thread = Thread.new { described_class.new.perform(step.arguments) } }
        thread.join # it doesn't wait for the report
      end
      TaskerCore.reports.drain

      expect([step.state, step.result]).to eq(%w[complete charged])
    end
  end

  describe "when Postgres is away" do
    before { stub_const("TaskerCore::ProcessRegistration::BEAT_SECONDS", 0.02) }

    it "connects again for the next job" do
      handler { |*| "charged" }
      steps = Array.new(2) { dispatch("Orders::Charge") }
      perform(steps[0])
      TestDatabase.terminate_gem
      perform(steps[1])

      expect(steps.map(&:state)).to eq(%w[complete complete])
    end

    it "connects again for the report" do
      step = dispatch(handler { |*| TestDatabase.terminate_gem && "charged" })
      perform(step)

      expect(step.state).to eq("complete")
    end

    # A function that breaks the first connection it is called on, then is the one it replaced.
    def break_once(function, arguments)
      TestDatabase.connection.exec(<<~SQL)
        CREATE SEQUENCE calls;
        ALTER FUNCTION tasker.#{function}(#{arguments.join(', ')}) RENAME TO whole_#{function};
      SQL
      yield
    ensure
      TestDatabase.connection.exec(<<~SQL)
        DROP FUNCTION tasker.#{function}(#{arguments.join(', ')});
        ALTER FUNCTION tasker.whole_#{function}(#{arguments.join(', ')}) RENAME TO #{function};
        DROP SEQUENCE calls;
      SQL
    end

    it "goes on reporting" do
      step = dispatch(handler { |*| "charged" })
      break_once("report_results", %w[jsonb boolean]) do
        TestDatabase.connection.exec(<<~SQL)
          CREATE FUNCTION tasker.report_results(reports jsonb, wait boolean) RETURNS TABLE (step_id bigint, attempt int, accepted boolean, reason text)
          LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('public.calls') < 3 THEN PERFORM pg_terminate_backend(pg_backend_pid()), pg_sleep(60); END IF;
            RETURN QUERY SELECT * FROM tasker.whole_report_results(reports, wait);
          END $$;
        SQL
        perform(step)
      end

      expect(step.result).to eq("charged")
      expect(logged.scan("cannot report 1 attempts yet").size).to eq(2)
    end

    it "runs an attempt whose start was answered to nobody" do
      runs = 0
      step = dispatch(handler { |*| runs += 1 })
      # The first call: started and committed, and the answer lost.
      call_id = nil
      allow(TaskerCore).to receive(:protocol).and_wrap_original do |original|
        original.call.tap do |protocol|
          protocol.define_singleton_method(:start_attempts) do |attempts, process_id, id|
            answers = super(attempts, process_id, id)
            first = call_id.nil?
            call_id ||= id
            raise TaskerCore::DatabaseError.new("the connection broke", answered: false) if first

            answers
          end
        end
      end
      perform(step)

      expect(runs).to eq(1)
      expect(step.events).to eq(%w[step.handle step.completed])
    end

    it "leaves an attempt alone that another process has started, when its own start came to nothing" do
      step = dispatch(handler { |*| "charged" })
      TaskerCore.process_registration.id
      TaskerCore.protocol.start_attempts([[step.step_id, 1, step.ticket]], nil, 1)
      TaskerCore.process_registration.forsake(step.step_id, 1, 2)
      eventually("the heartbeat asks") { step.events.include?("step.report_refused") }

      expect([step.state, step.failure]).to eq(["in_progress", nil])
    end

    # For the pool alone: the heartbeat, which runs, keeps its own connection.
    def lose_postgres
      TaskerCore.configure do |config|
        config.database_url = "postgres://127.0.0.1:1/nowhere"
        config.start_timeout = config.report_timeout = 0
      end
    end

    it "raises when the time to start is over, and leaves an attempt that it has not started to others" do
      step = dispatch(handler { |*| "charged" })
      TaskerCore.process_registration.id
      lose_postgres

      expect { perform(step) }.to raise_error(TaskerCore::DatabaseError)
      eventually("the heartbeat asks") { step.events.include?("step.report_refused") }
      expect([step.state, step.failure]).to eq(["enqueued", nil])
    end

    it "has an attempt reported as lost that it has started without ever hearing of it" do
      step = dispatch(handler { |*| "charged" })
      allow(TaskerCore).to receive(:protocol).and_wrap_original do |original|
        original.call.tap do |protocol|
          protocol.define_singleton_method(:start_attempts) do |*arguments|
            super(*arguments)
            raise TaskerCore::DatabaseError.new("the connection broke", answered: false)
          end
        end
      end
      TaskerCore.config.start_timeout = 0

      expect { perform(step) }.to raise_error(TaskerCore::DatabaseError)
      eventually("the heartbeat reports it") { step.failure == { "lost" => true } }
    end

    it "has the attempt reported as lost when the time to report is over" do
      gone = TaskerCore::Database.new(parameters: -> { { host: "127.0.0.1", port: 1, dbname: "nowhere" } })
      step = dispatch(handler { |*| "charged" })
      TaskerCore.config.report_timeout = 0
      reports = TaskerCore::ReportQueue.new(TaskerCore::Protocol.new(gone))
      TaskerCore::AttemptBundle.new([[step.step_id, 1, step.ticket]], reports:).call
      reports.drain

      expect(logged).to include("is left to the heartbeat")
      eventually("the heartbeat reports it") { step.failure == { "lost" => true } }
    end
  end

  describe "several attempts in one job" do
    def bundle(steps) = { "v" => 2, "attempts" => steps.map { |step| [step.step_id, step.attempt, step.ticket] }, "handlers" => ["Orders::Charge"] }

    def perform_all(steps)
      described_class.new.perform(bundle(steps))
    ensure
      TaskerCore.reports.drain
    end

    # Transactions that wrote the steps' present state.
    def transactions(steps)
      TestDatabase.connection.exec("SELECT DISTINCT xmin FROM tasker.steps WHERE step_id IN (#{steps.map(&:step_id).join(', ')})").ntuples
    end

    it "are those of the contract" do
      %w[Orders::Charge Orders::Ship].each { |name| handler(name) { |*| nil } }
      described_class.new.perform(*contract("sidekiq_bundle")["job"]["args"]) # there are no such steps

      expect(logged.scan(/step (42|43) attempt \d not started/).flatten).to eq(%w[42 43])
    end

    it "are started by one call, run in turn and reported" do
      seen = []
      together = nil
      steps = nil
      handler do |task, _sequence, step|
        together ||= transactions(steps)
        seen << step.step_id
        [task.task_id, step.step_id]
      end
      example = self
      Orders::Charge.define_method(:transactions) { |of| example.send(:transactions, of) }
      steps = Array.new(5) { dispatch("Orders::Charge") }
      perform_all(steps)

      expect(together).to eq(1)
      expect(seen).to eq(steps.map(&:step_id))
      expect(steps.map(&:result)).to eq(steps.map { |step| [step.task_id, step.step_id] })
    end

    it "don't share their failures" do
      steps = Array.new(4) { dispatch(handler { |_task, _sequence, step| step.attempt == 2 ? raise(IOError, "step #{step.step_id}") : "done" }) }
      failing = dispatch("Orders::Charge", attempt: 2)
      other = dispatch("Orders::Charge", attempt: 2)
      handled = []
      allow(TaskerCore::SidekiqErrors).to receive(:handle) { |error| handled << error.message }

      expect { perform_all([steps[0], failing, steps[1], other, *steps[2..]]) }.to raise_error(IOError, "step #{other.step_id}")
      expect(handled).to eq(["step #{failing.step_id}"])
      expect(steps.map(&:state)).to all(eq("complete"))
      expect([failing, other].map { |step| step.failure["message"] }).to eq(["step #{failing.step_id}", "step #{other.step_id}"])
    end

    it "leave out those that may not start" do
      steps = Array.new(3) { dispatch(handler { |*| "done" }) }
      perform(steps[1])
      perform_all(steps)

      expect(steps.map { |step| step.events.count("step.handle") }).to eq([1, 1, 1])
      expect(logged).to include("attempt 1 of step #{steps[1].step_id} (work) is complete")
    end

    it "are given up when the process shuts down, those too that have not begun" do
      steps = Array.new(3) { dispatch(handler { |*| raise Sidekiq::Shutdown }) }

      expect { perform_all(steps) }.to raise_error(Sidekiq::Shutdown)
      expect(steps.map(&:failure)).to all(eq("lost" => true))
    end

    it "can't be started where an open transaction holds one, and the others are" do
      steps = Array.new(3) { dispatch(handler { |*| "done" }) }
      TestDatabase.connection.transaction do |transaction|
        transaction.exec_params("SELECT FROM tasker.steps WHERE step_id = $1 FOR UPDATE", [steps[1].step_id])
        perform_all(steps)
      end

      expect(steps.map(&:state)).to eq(%w[complete enqueued complete])
      expect(logged).to include("step #{steps[1].step_id} (work) is held by another transaction")
    end

    it "fail alone when their inputs can't be read" do
      steps = [dispatch(handler { |*| "done" }), dispatch("Orders::Charge", context: { "deep" => 1 }), dispatch("Orders::Charge")]
      deep = %({"deep": #{'[' * 10_000}#{']' * 10_000}})
      TestDatabase.connection.exec_params("UPDATE tasker.tasks SET context = $2::jsonb WHERE task_id = $1", [steps[1].task_id, deep])
      thread = Thread.new { perform_all(steps) } # a thread's stack is small
      thread.report_on_exception = false

      expect { thread.join }.to raise_error(SystemStackError)
      expect(steps.map(&:state)).to eq(%w[complete in_progress complete])
      expect(steps[1].failure).to include("class" => "SystemStackError")
    end

    it "are reported as lost by the heartbeat when the answer can't be read" do
      stub_const("TaskerCore::ProcessRegistration::BEAT_SECONDS", 0.02)
      steps = Array.new(2) { dispatch(handler { |*| "done" }) }
      allow(TaskerCore::StartAnswer).to receive(:new).and_raise(NoMemoryError)

      expect { perform_all(steps) }.to raise_error(NoMemoryError)
      eventually("the heartbeat reports them") { steps.map(&:failure) == [{ "lost" => true }] * 2 }
    end

    it "tell Sidekiq of their errors when a later one ends the job" do
      handled = []
      allow(TaskerCore::SidekiqErrors).to receive(:handle) { |error| handled << error.message }
      steps = [dispatch(handler { |_task, _sequence, step| step.attempt == 2 ? exit(3) : raise(IOError, "first") }), dispatch("Orders::Charge", attempt: 2)]

      expect { perform_all(steps) }.to raise_error(SystemExit)
      expect(handled).to eq(["first"])
    end

    it "are given up when they wait long behind one that takes long" do
      stub_const("TaskerCore::AttemptBundle::PATIENCE_SECONDS", 0.5)
      stub_const("TaskerCore::BundleWatch::EVERY_SECONDS", 0.01)
      begun = Queue.new
      let_go = Queue.new
      steps = Array.new(3) { dispatch(handler { |*| (begun << true) && let_go.pop }) }
      thread = Thread.new { perform_all(steps) }
      begun.pop
      eventually("the others are given up") { steps[1..].map(&:failure) == [{ "lost" => true }] * 2 }
      let_go << "done"
      thread.join

      expect(steps[0].result).to eq("done")
      expect(begun).to be_empty
    end
  end
end
