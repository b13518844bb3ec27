# frozen_string_literal: true

require "active_record"

RSpec.describe TaskerCore::BaseTaskHandler do
  let(:template) do
    register_template([{ position: 0, name: "reserve", handler: "tasker.echo", attempt_limit: 1, bypassable: true },
                       { position: 1, name: "charge", handler: "tasker.echo", attempt_limit: 1, depends_on: [0] }])
  end

  def handler(base = described_class, &) = Class.new(base, &).tap { |made| made.task_template(namespace: "spec", name: template) }

  def task(id) = TestDatabase.row("SELECT * FROM tasker.tasks WHERE task_id = $1", id)

  def tasks = TestDatabase.value("SELECT count(*) FROM tasker.tasks WHERE name = $1", template).to_i

  before do
    ActiveRecord::Base.establish_connection(TestDatabase.url)
    use_test_database
  end
  after { ActiveRecord::Base.remove_connection }

  it "makes a task with its steps" do
    result = handler.new.initialize_task({ "context" => { order_id: 5 }, priority: 1, bypass_steps: ["reserve"] })

    expect(result).to be_a(TaskerCore::TaskInitializationResult).and be_frozen
    expect(result["task_id"]).to eq(result.task_id)
    expect(task(result.task_id)).to include("namespace" => "spec", "name" => template, "priority" => "1", "bypass_steps" => "{reserve}", "state" => "pending")
    ids = TestDatabase.connection.exec("SELECT name, step_id FROM tasker.steps WHERE task_id = #{result.task_id} ORDER BY position").values
    expect(result.step_mapping.to_a).to eq(ids.map { |name, id| [name, id.to_i] })
    expect(result.step_count).to eq(2)
  end

  it "needs one round trip" do
    made = handler.new
    made.initialize_task(context: {}) # what ActiveRecord asks once
    statements = []
    ActiveSupport::Notifications.subscribed(->(*, payload) { statements << payload[:sql] }, "sql.active_record") { made.initialize_task(context: {}) }

    expect(statements).to match [/tasker\.enqueue_task/]
  end

  it "says that a context goes into braces" do
    expect { handler.enqueue(order_id: 5) }
      .to raise_error(TaskerCore::ValidationError, "order_id is no option of a task; the context goes into braces: enqueue({ order_id: … })")
  end

  it "takes a template as text and as a Hash" do
    text = "namespace_name: spec\nname: #{template}\nversion: 1.0.0\nstep_templates: []\n"

    [text, YAML.safe_load(text)].each do |yaml|
      made = described_class.new(yaml)
      expect(made).to have_attributes(namespace: "spec", name: template, version: "1.0.0")
      expect(task(made.initialize_task(context: { a: 1 }).task_id)).to include("name" => template, "context" => '{"a": 1}')
    end
  end

  it "makes any task without a template of its own" do
    expect(described_class.new.initialize_task({ namespace_name: "spec", name: template }).step_count).to eq(2)
    expect { described_class.new.initialize_task({ context: {} }) }.to raise_error(TaskerCore::ValidationError, /needs a name/)
  end

  it "belongs to the transaction that is open" do
    ActiveRecord::Base.transaction do
      handler.enqueue({ order_id: 5 })
      raise ActiveRecord::Rollback
    end

    expect(tasks).to eq(0)
  end

  it "works on a connection of PG's, with or without a transaction" do
    connection = PG.connect(TestDatabase.url)
    handler.enqueue({}, connection:)
    connection.exec("BEGIN")
    handler.enqueue({}, connection:)
    connection.exec("ROLLBACK")

    expect(tasks).to eq(1)
  ensure
    connection.close
  end

  it "returns the task that there is, for a key that is taken" do
    first = handler.enqueue({}, idempotency_key: "k")

    expect(handler.enqueue({}, idempotency_key: "k")).to eq(first)
    expect { handler.enqueue({}, idempotency_key: "k", on_duplicate: :refuse) }.to raise_error(TaskerCore::TaskRefusedError, /idempotency key/)
  end

  it "calls its hooks" do
    calls = []
    made = handler do
      define_method(:validate_context) { |context| calls << context }
      define_method(:before_initialize) { |request| request.with(tags: [request.context["kind"]]) }
      define_method(:after_initialize) { |result| calls << result.step_mapping.keys }
    end
    result = made.enqueue({ kind: "gift" })

    expect(calls).to eq([{ "kind" => "gift" }, %w[reserve charge]])
    expect(task(result.task_id)["tags"]).to eq("{gift}")
  end

  it "leaves nothing when a hook refuses" do
    [->(*) { raise TaskerCore::ValidationError, "no order" }, ->(*) { raise IOError }].zip(%i[validate_context after_initialize]) do |refusal, hook|
      expect { handler { define_method(hook, &refusal) }.enqueue({}) }.to raise_error(StandardError)
    end

    expect(tasks).to eq(0)
  end

  it "leaves nothing of a task that a hook refuses, in a transaction that goes on" do
    made = handler { define_method(:after_initialize) { |*| raise IOError } }
    connection = PG.connect(TestDatabase.url)
    ActiveRecord::Base.transaction { expect { made.enqueue({}) }.to raise_error(IOError) }
    connection.transaction { expect { made.enqueue({}, connection:) }.to raise_error(IOError) }
    expect { made.enqueue({}, connection:) }.to raise_error(IOError)

    expect(tasks).to eq(0)
  ensure
    connection.close
  end

  it "makes no tasks of other templates" do
    expect { handler.new.initialize_task({ namespace: "spec", name: "other" }) }
      .to raise_error(TaskerCore::ValidationError, %r{the request is for spec/other, and .* makes tasks of spec/#{template}})
  end

  it "says what the engine refuses" do
    made = Class.new(described_class) { task_template namespace: "spec", name: "nothing" }

    expect { made.enqueue({}) }.to raise_error(TaskerCore::TemplateNotFoundError, %r{no template spec/nothing})
    expect { made.new.initialize_task("x") }.to raise_error(TaskerCore::ValidationError, /not "x"/)
    expect { described_class.new("- a\n- b\n") }.to raise_error(TaskerCore::ConfigurationError, /a template is a mapping/)
  end

  it "hands the template's name on to subclasses" do
    expect(Class.new(handler).new).to have_attributes(namespace: "spec", name: template)
  end

  it "doesn't let its own methods be overridden" do
    %i[handle initialize_task].each do |name|
      expect { Class.new(described_class) { define_method(name) { |*| nil } } }.to raise_error(TaskerCore::ConfigurationError, /must not define #{name}/)
    end
  end

  it "asks for a run and says how the task stands" do
    made = handler
    result = made.new.handle(made.enqueue({}).task_id)

    expect(result).to have_attributes(state: "pending", total_steps: 2)
  end
end
