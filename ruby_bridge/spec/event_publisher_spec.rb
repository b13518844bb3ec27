# frozen_string_literal: true

require "active_support"
require "active_support/notifications"

RSpec.describe TaskerCore::EventPublisher do
  include EventHelpers

  before { use_test_database }

  let(:got) { Thread::Queue.new }
  let(:collect) { ->(event) { got << event } }
  let(:template) { register_template([{ position: 0, name: "work", handler_class: "Orders::Charge", attempt_limit: 3 }]) }

  def start = TaskerCore::EventPublisher.start

  describe "the block of the document" do
    it "gets enqueue, reenqueue and failed, with the task's id and the delay" do
      seen = Thread::Queue.new
      described_class.subscribe(from: :beginning) do |event|
        case event.name
        when "task.enqueue" then seen << [:enqueue, event.data["task_id"]]
        when "task.reenqueue" then seen << [:reenqueue, event.data["task_id"], event.data["delay"]]
        when "task.failed" then seen << [:failed, event.data]
        end
      end
      start
      task_id = insert_task(template, { "order_id" => 5 })
      write_event("workflow.task_reenqueue_delayed", task_id:, data: { delay_seconds: 2.5 })
      write_event("task.failed", task_id:, data: { message: "step work failed" })

      expect(Array.new(3) { take(seen) }).to match(
        [[:enqueue, task_id], [:reenqueue, task_id, 2.5],
         [:failed, a_hash_including("task_id" => task_id, "message" => "step work failed", "namespace" => "spec", "task_name" => template)]]
      )
    end
  end

  describe "an event" do
    it "knows what it is about, is frozen, and its name in Postgres" do
      described_class.subscribe("step.handle", "task.enqueue", from: :beginning, &collect)
      task_id = TaskerCore.enqueue_task(namespace: "spec", name: template, correlation_id: "req-1", connection: TestDatabase.connection)
      step_id = TestDatabase.value("SELECT step_id FROM tasker.steps WHERE task_id = $1", task_id).to_i
      TestDatabase.connection.exec_params("INSERT INTO tasker.events (task_id, step_id, attempt, name, data, created_at) " \
                                          "VALUES ($1, $2, 2, 'step.handle', $3, $4)",
                                          [task_id, step_id, '{"a": {"b": [1]}}', "2026-11-23 09:00:00.123456+01"])
      start
      enqueued = take(got)
      event = take(got)

      expect(enqueued).to have_attributes(name: "task.enqueue", catalogue_name: "task.initialize_requested", step_id: nil)
      expect(event.to_h).to match(
        id: enqueued.id + 1, name: "step.handle", catalogue_name: "step.handle", occurred_at: Time.utc(2026, 11, 23, 8, 0, 0, 123_456), task_id:, step_id:,
        step_name: "work", attempt: 2, namespace: "spec", task_name: template, task_version: "1.0.0", correlation_id: "req-1", parent_task_id: nil,
        data: { "task_id" => task_id, "step_id" => step_id, "step_name" => "work", "attempt" => 2, "namespace" => "spec", "task_name" => template,
                "correlation_id" => "req-1", "a" => { "b" => [1] } }
      )
      expect(event.occurred_at).to be_utc.and be_frozen
      expect([event, event.data, event.data["a"]["b"], event.name, event.correlation_id]).to all(be_frozen)
    end

    it "has the engine's word for what it is about, whatever the event carries under the same name" do
      described_class.subscribe("order.paid", from: :beginning, &collect)
      task_id = TaskerCore.enqueue_task(namespace: "spec", name: template, connection: TestDatabase.connection)
      forged = { "task_id" => 1, "step_name" => "charge", "namespace" => "other", "task_name" => "other", "step_id" => 3, "n" => 1 }
      described_class.publish("order.paid", forged, task: task_id, connection: TestDatabase.connection)
      start

      expect(take(got).data).to eq("task_id" => task_id, "namespace" => "spec", "task_name" => template, "step_name" => "charge", "step_id" => 3, "n" => 1)
    end

    it "may be of no task" do
      described_class.subscribe("gate.*", from: :beginning, &collect)
      write_event("gate.paused", data: { scope: "queue" })
      start

      expect(take(got)).to have_attributes(task_id: nil, namespace: nil, data: { "scope" => "queue" })
    end

    {
      [] => %w[task.enqueue task.reenqueue], ["task.*"] => %w[task.enqueue task.reenqueue], ["task.reenqueue"] => %w[task.reenqueue],
      ["task.initialize_requested"] => %w[task.initialize_requested], ["workflow.*"] => %w[workflow.task_reenqueue_delayed],
      ["task.initialize_requested", "workflow.*", "task.enqueue"] => %w[task.enqueue workflow.task_reenqueue_delayed]
    }.each do |patterns, names|
      it "has the name that fits #{patterns.empty? ? 'no pattern' : patterns.join(' and ')}" do
        described_class.subscribe(*patterns, from: :beginning, &collect)
        write_event("task.initialize_requested")
        write_event("workflow.task_reenqueue_delayed", data: { delay_seconds: 1 })
        start

        expect(names.map { take(got).name }).to eq(names)
      end
    end
  end

  describe "subscribing" do
    it "refuses names that no event has, and guesses" do
      {
        "task.complete" => /no event task.complete: did you mean task.completed\?/, "jobs.*" => nil, "step.*" => nil,
        "task" => /no event task/, "Shop.Sold" => /"Shop.Sold" is not the name of an event/, "task*" => /is not the name/
      }.each do |pattern, words|
        subscribing = -> { described_class.subscribe(pattern, name: pattern) { nil } }
        words ? expect(&subscribing).to(raise_error(TaskerCore::ConfigurationError, words)) : expect(&subscribing).not_to(raise_error)
      end
    end

    it "refuses what makes no sense" do
      {
        [] => /a block, or one object/, [Object.new] => /Object has no method like on_task_completed/,
        ["shop.sold", Object.new] => /Object subscribes to shop.sold and has no public method on_shop_sold/
      }.each do |arguments, words|
        expect { described_class.subscribe(*arguments, name: "x") && start }.to raise_error(TaskerCore::ConfigurationError, words)
      end
      { from: :yesterday, on_error: :explode, retries: -1, name: " " }.each do |option, value|
        expect { described_class.subscribe(name: "y", **{ option => value }) { nil } }.to raise_error(TaskerCore::ConfigurationError)
      end
    end

    it "refuses two of one name, and takes the same code again" do
      2.times { described_class.subscribe(&collect) }

      expect { described_class.subscribe { nil } }.to raise_error(TaskerCore::ConfigurationError, /there is a subscriber "default" already .*name:/)
    end

    it "takes an object with methods, under the name of its class" do
      listener = Class.new do
        attr_accessor :got

        def on_task_completed(event) = got << event

        def on_shop_sold(event) = got << event
      end
      stub_const("Orders::Listener", listener)
      mine = Orders::Listener.new.tap { |object| object.got = got }
      described_class.subscribe(mine, from: :beginning)
      described_class.subscribe("shop.*", mine, name: "shop", from: :beginning)
      %w[task.completed task.failed shop.sold shop.seen].each { |name| write_event(name) }
      start

      expect(Array.new(2) { take(got).name }).to contain_exactly("task.completed", "shop.sold")
      expect(TestDatabase.row("SELECT patterns FROM tasker.event_subscribers WHERE name = 'orders_listener'")).to eq("patterns" => "{task.completed}")
      eventually("all are acknowledged") { lag_of("shop")["behind"] == "0" }
      expect(got).to be_empty
    end

    it "starts at once where subscribers run, and ends with unsubscribe; the cursor stays until it is forgotten" do
      described_class.subscribe("shop.none", name: "first") { nil }
      start
      subscription = described_class.subscribe("shop.*", name: "second", from: :beginning, &collect)
      write_event("shop.sold")
      take(got)
      subscription.unsubscribe
      id = write_event("shop.sold")
      again = described_class.subscribe("shop.*", name: "second", &collect)
      expect(take(got).id).to eq(id)
      again.unsubscribe(forget: true)

      expect(lag_of("second")).to eq({})
      expect(described_class.subscriptions.map(&:name)).to eq(["first"])
    end

    it "may be ended by its own handler, after the event that it handles" do
      subscription = described_class.subscribe(from: :beginning) do |event|
        got << event.id
        subscription.unsubscribe if event.id == 2
      end
      TestDatabase.connection.transaction { |pg| 3.times { write_event("shop.sold", on: pg) } }
      start
      eventually("it has let go") { lag_of("default").values_at("cursor", "holder") == ["2", nil] }

      expect(Array.new(got.size) { got.pop }).to eq([1, 2])
    end
  end

  describe TaskerCore::EventSubscriber do
    def subscriber(name, *patterns, **options, &)
      stub_const(name, Class.new(described_class))
      Object.const_get(name).class_eval(&)
      Object.const_get(name).subscribe_to(*patterns, from: :beginning, **options)
    end

    it "handles each event in its method, and the rest in handle_event" do
      seen = got
      subscriber("Orders::MailSender", "task.completed", "step.*") do
        define_method(:handle_task_completed) { |event| seen << [:completed, event.name] }
        define_method(:handle_step_failed) { |event| seen << [:failed, event.name] }
        define_method(:handle_event) { |event| seen << [:other, event.name] }
      end
      %w[task.completed step.failed step.skipped].each { |name| write_event(name) }
      start

      expect(Array.new(3) { take(got) }).to eq([[:completed, "task.completed"], [:failed, "step.failed"], [:other, "step.skipped"]])
      expect(lag_of("orders_mail_sender")).not_to be_empty
    end

    it "has another name if it says so" do
      subscriber("Orders::Mailer", "task.completed") do
        subscriber_name "mails"
        def handle_event(_event); end
      end

      expect(TaskerCore::EventPublisher.subscriptions.map(&:name)).to eq(["mails"])
    end

    it "says at the start which method is missing" do
      subscriber("Orders::Mailer", "task.completed", "step.failed") { def handle_task_completed(_event); end }
      expect { TaskerCore::EventPublisher.start }
        .to raise_error(TaskerCore::ConfigurationError, /Mailer subscribes to step.failed and has no public method handle_step_failed, nor handle_event/)

      subscriber("Orders::Mailer", "step.*") { def handle_task_completed(_event); end }
      expect { TaskerCore::EventPublisher.start }.to raise_error(TaskerCore::ConfigurationError, /step\.\* and has no public method handle_event/)
    end

    it "refuses a name that no event has, in the class body" do
      expect { subscriber("Orders::Mailer", "task.done") { nil } }.to raise_error(TaskerCore::ConfigurationError, /no event task.done/)
      expect { stub_const("Orders::Bare", Class.new(described_class)) && TaskerCore::EventPublisher.subscribe(Orders::Bare) }
        .to raise_error(TaskerCore::ConfigurationError, /Orders::Bare: subscribe_to/)
    end

    it "is the reloaded class after a reload" do
      seen = got
      subscriber("Orders::Mailer", "shop.sold") { define_method(:handle_shop_sold) { |_event| seen << :old } }
      start
      write_event("shop.sold")
      expect(take(got)).to eq(:old)
      worker = TaskerCore.event_runner.instance_variable_get(:@workers).fetch("orders_mailer")
      subscriber("Orders::Mailer", "shop.sold") { define_method(:handle_shop_sold) { |_event| seen << :new } }
      write_event("shop.sold")

      expect(take(got)).to eq(:new)
      expect(TaskerCore.event_runner.instance_variable_get(:@workers).fetch("orders_mailer")).to be(worker)
    end
  end

  describe "publishing" do
    def published(id) = TestDatabase.row("SELECT * FROM tasker.event_log WHERE event_id = $1", id)

    it "is part of the caller's transaction" do
      connection = TestDatabase.connection
      connection.exec("BEGIN")
      described_class.publish("shop.sold", { cents: 5 }, connection:)
      connection.exec("ROLLBACK")
      id = described_class.publish("shop.sold", { cents: 7, at: Time.utc(2026, 1, 2) }, connection:)
      described_class.subscribe("shop.sold", from: :beginning, &collect)
      start

      expect(take(got)).to have_attributes(id:, data: { "cents" => 7, "at" => "2026-01-02T00:00:00.000000Z" })
    end

    it "carries the task and the step of a handler" do
      step = dispatch("Orders::Charge")
      context = TaskerCore::StepContext.new(contract("start_attempt")["step"].merge("step_id" => step.step_id, "attempt" => 1))
      id = described_class.publish("shop.charged", {}, step: context, connection: TestDatabase.connection)
      other = described_class.publish("shop.charged", {}, task: step.task_id, connection: TestDatabase.connection)

      expect(published(id)).to include("task_id" => step.task_id.to_s, "step" => "work", "attempt" => "1", "namespace" => "spec")
      expect(published(other)).to include("task_id" => step.task_id.to_s, "step" => nil)
    end

    it "refuses what makes no sense before Postgres does, so that the transaction lives on" do
      {
        ["task.done", {}] => /event task.done: names that begin with task\., step\., workflow\., gate\. are the engine's/,
        ["done", {}] => /is like order.fulfilled .*not "done"/, ["shop.done", [1]] => /a Hash, not Array/,
        ["shop.done", { a: { b: Object.new } }] => /shop.done is not JSON: \$\.a\.b is a Object/
      }.each do |arguments, words|
        expect { described_class.publish(*arguments, connection: TestDatabase.connection) }.to raise_error(TaskerCore::EventRefusedError, words)
      end
    end

    it "passes on what Postgres refuses" do
      PG.connect(TestDatabase.url) do |connection|
        expect { described_class.publish("shop.done", {}, task: 999_999_999, connection:) }
          .to raise_error(TaskerCore::EventRefusedError, "there is no task 999999999")
        expect { described_class.publish("shop.done", { text: "x" * 70_000 }, connection:) }
          .to raise_error(TaskerCore::EventRefusedError, /bytes as text, at most 65536 are kept/)
      end
    end
  end

  describe "bridges" do
    it "instruments with ActiveSupport::Notifications" do
      seen = []
      ActiveSupport::Notifications.subscribed(->(*arguments) { seen << arguments }, /\.tasker\z/) do
        described_class.bridge_notifications("shop.*", from: :beginning)
        write_event("shop.sold", data: { cents: 5 })
        start
        eventually("it is instrumented") { seen.any? }
      end

      expect(seen.first.first).to eq("shop.sold.tasker")
      expect(seen.first.last).to include(id: 1, name: "shop.sold", data: { "cents" => 5 })
    end

    it "publishes into a publisher of dry-events" do
      # Stands in for an object that includes Dry::Events::Publisher, as far as
      # its documentation goes: an event must be registered, payloads are Hashes.
      stand_in = Class.new do
        attr_reader :published

        def initialize
          @registered = []
          @published = Thread::Queue.new
        end

        def register_event(event_id, _payload = {})
          @registered << event_id
          self
        end

        def publish(event_id, payload = {})
          raise "#{event_id} was registered #{@registered.count(event_id)} times" unless @registered.one?(event_id)

          @published << [event_id, payload]
        end
      end.new
      described_class.bridge_dry_events(stand_in, from: :beginning)
      2.times { write_event("shop.sold", data: { cents: 5 }) }
      start

      expect(Array.new(2) { take(stand_in.published) }).to match([["shop.sold", a_hash_including(id: 1)], ["shop.sold", a_hash_including(id: 2)]])
    end
  end

  describe "running" do
    it "refuses to run when nobody subscribes" do
      expect { described_class.run }.to raise_error(TaskerCore::ConfigurationError, /nobody subscribes to events/)
    end
  end

  it "has the names of events.go, and docs/events.md tells of each" do
    root = File.expand_path("../..", __dir__)
    names = File.read(File.join(root, "events.go")).scan(/^\s+Event\w+\s+EventName = "([^"]+)"/).flatten
    documented = File.read(File.join(root, "docs/events.md")).scan(/`([a-z_.]+)`/).flatten

    expect(TaskerCore::EventNames::CATALOGUE).to match_array(names)
    expect(names + TaskerCore::EventNames::ALIASES.keys - documented).to eq([])
  end
end
