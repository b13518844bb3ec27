# frozen_string_literal: true

require "tasker_core/testing/rspec"
require "tasker_core/testing/minitest"

RSpec.describe "Modes of TaskerCore::Testing" do
  let(:testing) { TaskerCore::Testing }

  before { testing.clear }

  after do
    testing.disable!
    testing.templates.clear
  end

  def enqueue(name = "fulfil_order", **options) = TaskerCore.enqueue_task(namespace: "shop", name:, **options)

  describe "fake!" do
    it "records tasks instead of inserting them" do
      id = testing.fake! { enqueue(context: { order_id: 5, at: Time.at(0) }, priority: 1, tags: ["a"], run_at: "2030-01-02 03:04:05Z") }

      task, = testing.tasks
      expect(testing.tasks.length).to eq(1)
      expect([task.task_id, task.full_name, task.priority, task.tags, task.run_at, task.run])
        .to eq([id, "shop/fulfil_order", 1, ["a"], Time.utc(2030, 1, 2, 3, 4, 5), nil])
      expect(task.context).to eq("order_id" => 5, "at" => "1970-01-01T00:00:00.000000Z").and be_frozen
      testing.clear
      expect(testing.tasks).to be_empty
    end

    it "records what task handlers make too" do
      fulfil = Class.new(TaskerCore::BaseTaskHandler) { task_template(namespace: "shop", name: "fulfil_order") }
      made = testing.fake! { fulfil.enqueue({ order_id: 5 }, connection: TestDatabase.connection) }
      expect([made.step_count, made.step_mapping]).to eq([0, {}])
      testing.templates.add(name: "fulfil_order", namespace_name: "shop", step_templates: [{ name: "only", handler: "go" }])
      known = testing.fake! { fulfil.enqueue({ order_id: 6 }, connection: TestDatabase.connection) }
      testing.inline!(stub: { only: 1 }) { fulfil.enqueue({ order_id: 7 }, connection: TestDatabase.connection) }

      expect(known.step_mapping.keys).to eq(["only"])
      expect(testing.tasks.map { |task| [task.full_name, task.context["order_id"], task.run&.state] })
        .to eq([["shop/fulfil_order", 5, nil], ["shop/fulfil_order", 6, nil], ["shop/fulfil_order", 7, "complete"]])
      expect(testing.tasks.first.task_id).to eq(made.task_id)
      expect { testing.disable! { fulfil.enqueue({}, connection: TestDatabase.connection) } }.to raise_error(TaskerCore::TaskRefusedError)
    end

    it "refuses what the engine would" do
      testing.fake! do
        expect { enqueue(context: { a: Float::NAN }) }
          .to raise_error(TaskerCore::TaskRefusedError, "the context is not JSON: $.a is NaN, which JSON doesn't have")
        id = enqueue(idempotency_key: "k")
        expect([enqueue(idempotency_key: "k"), enqueue("other", idempotency_key: "k")]).to match([id, be > id])
        expect { enqueue(idempotency_key: "k", on_duplicate: :refuse) }.to raise_error(TaskerCore::TaskRefusedError, /has the idempotency key "k" already/)
      end
    end

    it "holds for the thread of its block, and for all threads without a block" do
      testing.fake! do
        testing.disable! { expect { enqueue }.to raise_error(TaskerCore::ConfigurationError) } # without ActiveRecord, or PG::Connection
        Thread.new { expect { enqueue }.to raise_error(TaskerCore::ConfigurationError) }.join
        enqueue
      end
      testing.fake!
      Thread.new { enqueue("other") }.join

      expect(testing.tasks.map(&:name)).to eq(%w[fulfil_order other])
    end

    it "ends with its block, also when that raises" do
      expect { testing.fake! { raise "broken" } }.to raise_error("broken")
      expect { enqueue }.to raise_error(TaskerCore::ConfigurationError)
    end

    it "runs what was recorded when it is asked to" do
      testing.templates.add(name: "fulfil_order", namespace_name: "shop", step_templates: [{ name: "only", handler: "go" }])
      testing.fake! { 2.times { |n| enqueue(context: { n: }) } }
      runs = testing.drain(stub: { only: ->(task, *) { task["n"] } })

      expect(runs.map { |run| run["only"].result }).to eq([0, 1])
      expect(testing.tasks.map(&:run)).to eq(runs)
      expect(testing.drain).to be_empty
    end
  end

  # The adapter of enqueue_task needs a connection: without one it says so.
  before { hide_const("ActiveRecord::Base") }

  describe "inline!" do
    it "runs tasks at once, with the app's templates, the latest version first" do
      folder = Dir.mktmpdir
      File.write(File.join(folder, "a.yaml"), "{name: fulfil_order, namespace_name: shop, version: 1.9.0, step_templates: [{name: old, handler: x}]}")
      File.write(File.join(folder, "b.yml"), "{name: fulfil_order, namespace_name: shop, version: 1.10.0, step_templates: [{name: new, handler: x}]}")
      testing.templates_folder = folder
      testing.fake! { enqueue } # is nobody's to run
      testing.inline!(stub: { "new" => ->(task, *) { [task.correlation_id, task["a"], task.task_id] } }) do
        id = enqueue(context: { a: 1 }, correlation_id: "c-1")
        expect(testing.tasks.map(&:run)).to match([nil, be_complete])
        expect(testing.tasks.last.run["new"].result).to eq(["c-1", 1, id])
        expect { enqueue("nothing") }
          .to raise_error(TaskerCore::TaskRefusedError, %r{there is no template shop/nothing; in #{folder}.* there are: shop/fulfil_order\z})
        expect { enqueue(version: "3.0.0") }
          .to raise_error(TaskerCore::TaskRefusedError, "template shop/fulfil_order has no version 3.0.0; it has: 1.9.0, 1.10.0")
      end
      expect(testing.tasks.length).to eq(2)
    ensure
      testing.templates_folder = nil
    end

    it "runs tasks that their handlers enqueue, and later ones when time has come" do
      testing.templates.add(name: "parent", namespace_name: "shop", step_templates: [{ name: "only", handler_class: "Parent" }])
      testing.templates.add(name: "child", namespace_name: "shop", step_templates: [{ name: "only", handler_class: "Child" }])
      stub_const("Parent", Class.new(TaskerCore::BaseStepHandler) do
        def process(task, *) = TaskerCore.enqueue_task(namespace: "shop", name: "child", parent_task_id: task.task_id, run_at: Time.now + 3600)
      end)
      stub_const("Child", Class.new(TaskerCore::BaseStepHandler) { def process(task, *) = task.parent_task_id })

      testing.inline! do
        id = enqueue("parent")
        expect(testing.tasks.map(&:run)).to match([be_complete, nil])
        testing.travel(3500)
        expect(testing.tasks.last.run).to be_nil
        testing.travel(101)
        expect(testing.tasks.last.run["only"].result).to eq(id)
      end
    end
  end

  it "lets time go forward only" do
    expect { testing.travel(-1) }.to raise_error(TaskerCore::Testing::InputError, "time goes forward only: -1 is no number of seconds from 0")
    expect { testing.travel("1") }.to raise_error(TaskerCore::Testing::InputError)
  end

  it "loads the app's enqueueing untouched unless it is asked for" do
    script = "require 'tasker_core'; print TaskerCore.enqueuing, defined?(TaskerCore::Testing).inspect"
    expect(IO.popen([RbConfig.ruby, "-I", File.expand_path("../../lib", __dir__), "-e", script], &:read)).to eq("TaskerCore::TaskEnqueuenil")
  end

  describe "matchers" do
    def message_of
      yield
      raise "it should have failed"
    rescue RSpec::Expectations::ExpectationNotMetError => e
      e.message
    end

    let(:success) { testing.run_step(Class.new(TaskerCore::BaseStepHandler) { def process(*) = { a: 1, b: 2 } }) }
    let(:failure) do
      testing.run_step(Class.new(TaskerCore::BaseStepHandler) { def process(*) = raise(TaskerCore::PermanentError.new("declined", error_code: "card")) })
    end
    let(:busy) { testing.run_step(Class.new(TaskerCore::BaseStepHandler) { def process(*) = raise(TaskerCore::RetryableError.new("busy", retry_after: 30)) }) }

    it "tell of outcomes" do
      expect(success).to be_step_success.with("a" => 1)
      expect(success).to be_step_success.with(a_hash_including("b" => be > 1))
      expect(success).not_to be_step_success.with("a" => 2)
      expect(failure).to be_step_failure.with_code("card").with_message(/decl/).and be_permanent
      expect(busy).to be_retryable.after(be_between(20, 40))
      expect(busy).not_to be_permanent
      expect([success, failure]).to match([be_step_success, be_step_failure])
      expect(message_of { expect(success).to be_step_success.with("a" => 2) })
        .to start_with('expected the step to be a success with {"a"=>2}, and it succeeded with {"a"=>1, "b"=>2}')
      expect(message_of { expect(failure).to be_step_success })
        .to match(/\Aexpected the step to be a success, and it failed for good with TaskerCore::PermanentError \(code card\): declined\n  .*modes_spec/)
      expect(message_of { expect(failure).to be_step_failure.with_code("other") })
        .to start_with('expected the step to be a failure with code "other", and it failed for good with')
      expect(message_of { expect(failure).not_to be_step_failure }).to start_with("expected the step not to be a failure, and it failed for good")
      expect(message_of { expect(busy).to be_retryable.after(5) })
        .to start_with("expected the step to be retryable after 5 s, and it failed with TaskerCore::RetryableError: busy, to be tried again after 30 s")
      expect(message_of { expect(busy).to be_permanent }).to start_with("expected the step to fail for good, and it failed with")
    end

    it "tell of runs" do
      template = { name: "a", step_templates: [{ name: "one", handler: "x" }, { name: "two", handler: "x" }] }
      run = testing.run_task(template, stub: { one: 1, two: ArgumentError }, attempts: 1)

      expect(run).to have_completed_steps("one")
      expect(run).not_to have_completed_steps("two")
      expect(message_of { expect(run).to have_completed_steps("one", "two") }).to eq(<<~TEXT.chomp)
        expected completed steps: one, two; not so: two
        default/a@0.1.0 is error after 0 s (1 step failed: two)
          one: complete after 1 attempt
          two: error after 1 attempt: ArgumentError: ArgumentError
      TEXT
    end

    it "tell of enqueued tasks" do
      testing.fake! do
        enqueue(context: { before: 1 })
        expect { enqueue(context: { order_id: 5 }, priority: 1) }
          .to have_enqueued_task("shop/fulfil_order").with_context(hash_including("order_id" => be_odd)).with(priority: 1).once
        expect { 2.times { enqueue } }.to have_enqueued_task.exactly(2).times
        expect { nil }.not_to have_enqueued_task
        expect(testing).to have_enqueued_task.with_context("before" => 1)
        expect(message_of { expect { enqueue(context: { a: 1 }) }.to have_enqueued_task("shop/other") })
          .to eq("expected to enqueue task shop/other, and there was enqueued:\n  shop/fulfil_order with {\"a\"=>1}")
        expect(message_of { expect { nil }.to have_enqueued_task }).to eq("expected to enqueue a task, and no task was enqueued")
        expect(message_of { expect { enqueue }.not_to have_enqueued_task("shop/fulfil_order") })
          .to start_with("expected not to enqueue task shop/fulfil_order, and there was")
      end
    end

    it "say when nothing is recorded" do
      expect { expect { nil }.not_to have_enqueued_task }.to raise_error(TaskerCore::Testing::InputError, /begin with TaskerCore::Testing.fake!/)
    end
  end

  describe "assertions of Minitest" do
    let(:host) do
      Class.new do
        include TaskerCore::Testing::Assertions

        def assert(value, message) = value || raise(RSpec::Expectations::ExpectationNotMetError, message)
        def assert_equal(wanted, got, message = "") = assert(wanted == got, "#{message} #{wanted.inspect} #{got.inspect}")
      end.new
    end

    it "tell the same" do
      run = testing.run_task({ name: "a", step_templates: [{ name: "one", handler: "x" }] }, stub: { one: { a: 1 } })
      outcome = run["one"].attempts.first.outcome
      failed = testing.run_step("Nothing")

      expect(host.assert_step_success(outcome, { "a" => 1 })).to eq("a" => 1)
      host.assert_step_failure(failed, code: :handler_not_found, permanent: true)
      host.assert_completed_steps(run, :one)
      testing.fake! do
        host.assert_enqueued_task("shop/fulfil_order", context: { order_id: 5 }) { enqueue(context: { order_id: 5, more: 1 }) }
        host.refute_enqueued_task("shop/other")
      end
      [-> { host.assert_step_success(failed) }, -> { host.assert_step_success(outcome, nil) }, -> { host.assert_step_failure(outcome) },
       -> { host.assert_step_failure(failed, permanent: false) }, -> { host.assert_completed_steps(run, "two") },
       -> { host.assert_enqueued_task("shop/fulfil_order", context: { order_id: 6 }) }, -> { host.refute_enqueued_task("shop/fulfil_order") }]
        .each { |wrong| expect(&wrong).to raise_error(RSpec::Expectations::ExpectationNotMetError) }
    end
  end
end
