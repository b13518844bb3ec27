# frozen_string_literal: true

require "active_record"
require "active_support/core_ext/string/inflections"
require "active_support/notifications"
require_relative "apps/plain/listed"

# The components that the gem was asked to have, one example each, by the names
# that they were asked for under: with a worker and a real Sidekiq. What each
# can do besides is in the specs of its own.
RSpec.describe "The component list" do
  template = {
    namespace_name: "spec", name: "fulfil_order", version: "1.0.0", task_handler_class: "Listed::FulfilOrder",
    step_templates: [
      { name: "reserve", handler_class: "Listed::Reserve" },
      { name: "charge", handler_class: "Listed::Charge", depends_on_step: "reserve", default_retry_limit: 3 },
      { name: "ship", handler_class: "Listed::Ship", depends_on_step: "charge", default_retry_limit: 1, handler_config: { carrier: "post" } }
    ]
  }
  elsewhere = { namespace_name: "spec", name: "elsewhere", step_templates: [{ name: "work", handler_class: "Listed::Reserve", queue: "nobody" }] }
  typed = { "i64" => (1 << 63) - 1, "String" => "Ünï ✓ 𝄞", "serde_json::Value" => { "a" => { "b" => [nil, true, 0.5] } }, "Vec<T>" => [1, "two", [3]] }
  good = { "items" => %w[tea cup], "card" => "4242", "typed" => typed }

  before(:context) do
    @engine = Engine.new("plain/listed.rb", [template, elsewhere]).tap(&:start)
    PG.connect(engine.database_url) do |connection|
      ids = [good, good.merge("card" => "none")].map { |context| TaskerCore.enqueue_task(namespace: "spec", name: "fulfil_order", context:, connection:) }
      @done, @failed = ids
    end
    engine.await(@done, "complete")
    engine.await(@failed, "error")
  end

  after(:context) { engine&.stop }

  before do
    use_test_database(database_url: engine.database_url)
    ActiveRecord::Base.establish_connection(engine.database_url)
    registry.register(name: "fulfil_order", namespace_name: "spec", version: "1.0.0", yaml_template: template)
  end

  after do
    registry.clear!
    ActiveRecord::Base.remove_connection
  end

  attr_reader :engine

  define_method(:good) { good }

  def registry = TaskerCore::TaskHandlerRegistry.new

  def request = TaskerCore::TaskRequest.new(namespace: "spec", name: "fulfil_order", context: good)

  def task_handler = Listed::FulfilOrder.new(registry.find_handler_for_task_request(request)["yaml_template"])

  def coordinator = TaskerCore::WorkflowCoordinator.new

  def done = coordinator.status(@done)

  def failed = coordinator.status(@failed)

  def take(queue) = eventually("an event arrives") { queue.pop unless queue.empty? }

  # In a transaction that is rolled back: no worker sees it.
  def unseen
    ActiveRecord::Base.transaction do
      yield ActiveRecord::Base.connection
      raise ActiveRecord::Rollback
    end
  end

  describe "1. Handler foundation" do
    example "TaskerCore::BaseTaskHandler: task orchestration foundation" do
      result = task_handler.initialize_task(request)

      expect(task_handler.handle(result.task_id, wait: true)).to be_a(TaskerCore::TaskResult).and be_complete
      expect { task_handler.initialize_task(request.with(context: {})) }.to raise_error(TaskerCore::ValidationError, "an order has items")
    end

    example "TaskerCore::BaseStepHandler: step execution with process/process_results hooks" do
      expect(done.result_of("reserve")).to include("count" => 2, "hooked" => true)
    end

    example "TaskerCore::TaskContext: task-level execution context" do
      expect(done.result_of("ship")["task"]).to eq("id" => @done, "name" => "spec/fulfil_order@1.0.0", "card" => "4242", "frozen" => true)
    end

    example "TaskerCore::StepContext: step-level execution context" do
      expect(done.result_of("ship")).to include(
        "step" => { "name" => "ship", "attempt" => 1, "last" => true, "depends_on" => ["charge"], "config" => { "carrier" => "post" },
                    "charged" => done.result_of("charge")["key"] },
        "reserved" => 2
      )
    end
  end

  describe "2. Orchestration core" do
    example "TaskerCore::WorkflowCoordinator: main orchestration engine" do
      task_id = task_handler.initialize_task(request).task_id

      expect(coordinator.execute_task_workflow(task_id)).to have_attributes(task_id:, total_steps: 3)
      expect(coordinator.wait(task_id, timeout: 30)).to be_complete
    end

    example "TaskerCore::TaskResult: task completion states" do
      expect(done).to have_attributes(state: "complete", complete?: true, failed?: false, finished?: true, completed_steps: 3, failed_steps: 0)
      expect(failed).to have_attributes(state: "error", complete?: false, failed?: true, finished?: true, completed_steps: 1, failed_steps: 1)
    end

    example "TaskerCore::StepResult: individual step execution results" do
      expect(done.step("charge")).to have_attributes(class: TaskerCore::StepResult, state: "complete", attempts: 2, satisfied?: true, duration: be_positive)
      expect(failed.steps.map { |step| [step.name, step.state] }).to eq([%w[reserve complete], %w[charge error], %w[ship pending]])
    end

    example "TaskerCore::ViableStep: ready-to-execute steps" do
      unseen do |connection|
        result = task_handler.initialize_task(request)
        viable = TaskerCore::WorkflowCoordinator.new(connection:).viable_steps(result.task_id)

        expect(viable.map(&:class)).to eq([TaskerCore::ViableStep])
        expect(viable.first).to have_attributes(step_id: result.step_mapping["reserve"], task_id: result.task_id, name: "reserve",
                                                current_state: "pending", dependencies_satisfied: true, retry_eligible: true, attempts: 0)
      end
    end
  end

  describe "3. Event publishing system" do
    example "TaskerCore::EventPublisher: subscribe and publish lifecycle events" do
      seen = Thread::Queue.new
      TaskerCore::EventPublisher.subscribe(name: "listed", from: :beginning) do |event|
        case event.name
        when "task.enqueue", "task.failed", "order.fulfilled" then seen << [event.name, event.data["task_id"]]
        end
      end
      TaskerCore::EventPublisher.start
      TaskerCore::EventPublisher.publish("order.fulfilled", { items: 2 }, task: @done)

      got = []
      got << take(seen) until got.last == ["order.fulfilled", @done]
      expect(got).to include(["task.enqueue", @done], ["task.enqueue", @failed], ["task.failed", @failed])
    end

    example "TaskerCore::EventSubscriber: Ruby event subscriber interface" do
      seen = Thread::Queue.new
      stub_const("Accounting", Class.new(TaskerCore::EventSubscriber) do
        define_method(:handle_task_completed) { |event| seen << [:completed, event.data["task_id"]] }
        define_method(:handle_step_failed) { |event| seen << [:failed, event.step_name] }
      end)
      Accounting.subscribe_to("task.completed", "step.failed", from: :beginning)
      TaskerCore::EventPublisher.start

      expect(Array.new(2) { take(seen) }).to contain_exactly([:completed, @done], [:failed, "charge"])
    end
  end

  describe "Implemented" do
    example "Task initialization: TaskRequest → Task with state machines" do
      task_id = task_handler.initialize_task(request.with(run_at: Time.now + 3600)).task_id

      expect(coordinator.status(task_id)).to have_attributes(state: "pending", steps: all(have_attributes(state: "pending")))
      expect { engine.value("UPDATE tasker.tasks SET state = 'complete' WHERE task_id = $1 RETURNING 1", task_id) }
        .to raise_error(PG::Error) { |error| expect(TaskerCore::ErrorMapping.translate(error)).to be_a(TaskerCore::StateTransitionError) }
    end

    example "Database integration: task, workflow steps and state transitions" do
      steps = engine.value("SELECT string_agg(name, ' ' ORDER BY position) FROM tasker.steps WHERE task_id = $1", @done)
      dependencies = engine.value("SELECT count(*) FROM tasker.step_dependencies WHERE task_id = $1", @done)
      transitions = engine.value("SELECT string_agg(name, ' ' ORDER BY event_id) FROM tasker.events WHERE task_id = $1 AND name LIKE 'task.%'", @done)

      expect([steps, dependencies]).to eq(["reserve charge ship", "2"])
      expect(transitions).to eq("task.initialize_requested task.start_requested task.completed")
    end

    example "TaskHandlerRegistry core: handler lookup with Ruby class names and YAML templates" do
      result = registry.find_handler_for_task_request(request)
      handler = result["ruby_class_name"].constantize.new(result["yaml_template"])

      expect(result).to include("found" => true, "namespace" => "spec", "name" => "fulfil_order", "version" => "1.0.0")
      expect(handler).to be_a(Listed::FulfilOrder).and have_attributes(name: "fulfil_order")
    end

    example "Result conversion: immutable Ruby values, read as methods, by name and in patterns" do
      result = done
      case result
      in { state: "complete", steps: [*, { name: "ship", attempts: }] } then expect(attempts).to eq(1)
      end

      expect([result["state"], result]).to eq(["complete", done])
      expect([result, result.steps, result.result_of("ship")]).to all(be_frozen)
    end
  end

  describe "What was missing" do
    example "TaskHandlerRegistry singleton: every new one has what was registered" do
      TaskerCore::TaskHandlerRegistry.new.register(name: "refund", ruby_class_name: "Refund")

      seen = Array.new(5) { Thread.new { TaskerCore::TaskHandlerRegistry.new } }.map(&:value)
      expect(seen).to all(equal(TaskerCore::TaskHandlerRegistry.instance))
      expect(TaskerCore::TaskHandlerRegistry.new.find_handler_for_task_request(name: "refund")).to include("found" => true, "ruby_class_name" => "Refund")
    end

    example "Step delegation: the engine runs the Ruby step, in Sidekiq" do
      expect(done.result_of("reserve")["pid"]).to eq(engine.sidekiqs.first.pid)
    end

    example "Queue integration: an attempt is a job in the Sidekiq queue that the template names" do
      task_id = engine.enqueue("elsewhere")
      redis = engine.sidekiqs.first.redis
      jobs = -> { redis.lrange("queue:nobody", 0, -1).map { |text| JSON.parse(text) } }
      job = eventually("the job is there") { jobs.call.find { |candidate| candidate["args"].first["task_id"] == task_id } }

      expect(redis.sismember("queues", "nobody")).to be(true)
      expect(job).to include("class" => "TaskerCore::StepJob", "queue" => "nobody", "retry" => false,
                             "args" => [a_hash_including("v" => 1, "attempt" => 1, "handler" => "Listed::Reserve")])
    end

    example "Event publishing bridge: ActiveSupport::Notifications hears of what happens in Go" do
      seen = Thread::Queue.new
      listener = ActiveSupport::Notifications.subscribe("task.completed.tasker") { |*, payload| seen << payload.values_at(:task_id, :task_name) }
      TaskerCore::EventPublisher.bridge_notifications("task.completed", from: :beginning)
      TaskerCore::EventPublisher.start

      expect(take(seen)).to eq([@done, "fulfil_order"])
    ensure
      ActiveSupport::Notifications.unsubscribe(listener)
    end
  end

  describe "What was to do" do
    example "Error translation: the engine's refusals are exceptions of one hierarchy" do
      raised = [
        -> { TaskerCore.enqueue_task(namespace: "spec", name: "nothing") }, -> { coordinator.status(999) },
        -> { coordinator.run_now(@done) }, -> { coordinator.wait(engine.enqueue("elsewhere"), timeout: 0) }
      ].map { |call| call.call && nil rescue $ERROR_INFO } # rubocop:disable Style/RescueModifier

      expect(raised.map(&:class)).to eq([TaskerCore::TemplateNotFoundError, TaskerCore::TaskNotFoundError,
                                         TaskerCore::StateTransitionError, TaskerCore::TimeoutError])
      expect(raised).to all(be_a(TaskerCore::Error))
    end

    example "Error translation: an exception of a step handler is its failure, with code, context and backtrace" do
      exception = failed.step("charge").exception

      expect(exception).to be_a(TaskerCore::PermanentError)
        .and have_attributes(message: "no such card", error_code: "no_card", context: { "card" => "none" }, backtrace: include(/listed\.rb.*process/))
      expect(done.step("charge").exception).to be_a(TaskerCore::RetryableError).and have_attributes(message: "the bank is busy", retry_after: 0.1)
    end

    example "Configuration: nothing is hard-wired, and nonsense is named" do
      TaskerCore.configure { |config| config.pool_size = 1 }

      expect(TaskerCore.database.exec("SELECT current_database()").getvalue(0, 0)).to eq(URI(engine.database_url).path.delete_prefix("/"))
      expect { TaskerCore.configure { |config| config.report_timeout = "soon" } }.to raise_error(TaskerCore::ConfigurationError, /report_timeout.*"soon"/)
      expect { TaskerCore.config.update({ pool_sise: 3 }) }.to raise_error(TaskerCore::ConfigurationError, /did you mean pool_size\?/)
    end

    example "End-to-end validation: from the registry to the last step, through a failure" do
      found = registry.find_handler_for_task_request(request)
      handler = found["ruby_class_name"].constantize.new(found["yaml_template"])
      task_id = ActiveRecord::Base.transaction { handler.initialize_task(request).task_id }
      result = handler.handle(task_id, wait: true)

      expect(result.steps.map { |step| [step.name, step.state, step.attempts] })
        .to eq([["reserve", "complete", 1], ["charge", "complete", 2], ["ship", "complete", 1]])
    end
  end

  describe "Types" do
    { "i64" => "Integer", "String" => "String", "serde_json::Value" => "Hash", "Vec<T>" => "Array" }.each do |engines, ruby|
      example "#{engines} is #{ruby}, from the app to the handler and back" do
        result = done.result_of("reserve")

        expect(result["classes"][engines]).to eq(ruby)
        expect(result["typed"][engines]).to eq(typed[engines])
      end
    end

    example "DateTime<Utc> is a Time in UTC, to the microsecond; what a handler returns is its text" do
      micros = engine.value("SELECT to_char(finished_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US') FROM tasker.tasks WHERE task_id = $1", @done)

      expect(done.finished_at).to be_a(Time).and be_utc
      expect(done.finished_at.strftime("%Y-%m-%dT%H:%M:%S.%6N")).to eq(micros)
      expect(done.result_of("reserve")["at"]).to eq("1970-01-01T00:00:00.123456Z")
    end
  end
end
