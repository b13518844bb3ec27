# frozen_string_literal: true

require "active_job"
require "active_support/current_attributes"

RSpec.describe TaskerCore::CurrentValues do
  before do
    ActiveSupport::CurrentAttributes.clear_all # before Rails 7.2 it keeps instances by the class's name, also those of other specs
    stub_const("Current", Class.new(ActiveSupport::CurrentAttributes) { attribute :user, :locale, :request })
    stub_const("Audit::Current", Class.new(ActiveSupport::CurrentAttributes) { attribute :actor })
    use_test_database(current_attributes: ["Current", Audit::Current])
    stub_const("Account", Struct.new(:id) do
      include GlobalID::Identification

      def self.find(id) = new(id.to_i)
    end)
    GlobalID.app = "spec"
    seen = saw
    stub_const("Work", Class.new(TaskerCore::BaseStepHandler) do
      define_method(:process) do |*|
        seen << [Current.user, Current.locale, Audit::Current.actor]
        Current.locale = "changed"
        nil
      end
    end)
  end

  after { ActiveSupport::CurrentAttributes.clear_all }

  let(:saw) { [] }
  let(:template) { register_template([{ position: 0, name: "work", handler_class: "Work", attempt_limit: 3 }]) }

  def enqueue(**options)
    task_id = TaskerCore.enqueue_task(namespace: "spec", name: template, connection: TestDatabase.connection, **options)
    WorkflowHelpers::DispatchedStep.new(task_id, enqueue_step(task_id, 1), 1, "Work")
  end

  def carrier(step) = JSON.parse(TestDatabase.value("SELECT carrier FROM tasker.tasks WHERE task_id = $1", step.task_id) || "null")

  it "are around the handler what they were where the task was enqueued, and gone afterwards" do
    step = Current.set(user: Account.new(7), locale: :de) { Audit::Current.set(actor: "ops") { enqueue } }
    perform(step)

    expect(saw).to eq([[Account.new(7), :de, "ops"]])
    expect([Current.user, Current.locale, Audit::Current.actor]).to eq([nil, nil, nil])
    expect(carrier(step).dig("current_attributes", "values", "Current", "user")).to eq("_aj_globalid" => "gid://spec/Account/7")
  end

  it "are those of before again after the handler, for tasks that carry some and for others" do
    step = Current.set(locale: :de) { enqueue }
    other = enqueue
    Current.set(user: "outside", locale: "en") do
      [step, other].each { |one| perform(one) }

      expect([Current.user, Current.locale]).to eq(%w[outside en])
    end
    expect(saw).to eq([[nil, :de, nil], [nil, nil, nil]])
    expect(carrier(other)).to be_nil
  end

  it "are cleared also when the handler fails" do
    Work.define_method(:process) { |*| raise IOError }
    step = Current.set(locale: :de) { enqueue }

    expect { perform(step) }.to raise_error(IOError)
    expect(Current.locale).to be_nil
  end

  it "change neither the context nor what makes two tasks the same" do
    first = Current.set(locale: :de) { enqueue(idempotency_key: "k") }
    second = Current.set(locale: :en) { TaskerCore.enqueue_task(namespace: "spec", name: template, idempotency_key: "k", connection: TestDatabase.connection) }

    expect(second).to eq(first.task_id)
    expect(TestDatabase.value("SELECT context FROM tasker.tasks WHERE task_id = $1", second)).to eq("{}")
  end

  it "travel on to the tasks that a handler enqueues" do
    inner = nil
    enqueue_inner = -> { inner = enqueue }
    Work.define_method(:process) { |*| enqueue_inner.call && nil }
    perform(Current.set(locale: :de) { enqueue })

    expect(carrier(inner)).to eq("current_attributes" => { "codec" => "active_job", "values" => { "Current" => {
                                   "locale" => { "_aj_serialized" => "ActiveJob::Serializers::SymbolSerializer", "value" => "de" }
                                 } } })
  end

  it "are plain JSON without ActiveJob" do
    hide_const("ActiveJob")
    perform(Current.set(locale: "de") { enqueue })

    expect(saw).to eq([[nil, "de", nil]])
  end

  it "that can't travel are refused by name, and may be left out" do
    Current.set(request: Object.new, locale: "de") do
      expect { enqueue }.to raise_error(TaskerCore::TaskRefusedError, /Current\.request can't travel.*current_attributes = \{ "Current" => /m)

      use_test_database(current_attributes: { "Current" => %w[locale] })
      perform(enqueue)
    end
    expect(saw).to eq([[nil, "de", nil]])
  end

  it "that the class does not have any more are left out" do
    step = Current.set(request: "r", locale: "de") { enqueue }
    stub_const("Current", Class.new(ActiveSupport::CurrentAttributes) { attribute :user, :locale })
    perform(step)

    expect(saw).to eq([[nil, "de", nil]])
    expect(logged).to include("Current has no attribute request any more")
  end

  it "fail the attempt when a record is gone" do
    step = Current.set(user: Account.new(7)) { enqueue }
    Account.define_singleton_method(:find) { |_id| raise KeyError, "no such account" }

    expect { perform(step) }.to raise_error(ActiveJob::DeserializationError, /no such account/)
    expect(saw).to be_empty
  end

  it "need a class" do
    use_test_database(current_attributes: ["Currant"])

    expect { enqueue }.to raise_error(TaskerCore::ConfigurationError, /names Currant, and there is no such class/)
  end

  ["Current", [1], { "Current" => :user }, [:current]].each do |setting|
    it "can't be configured as #{setting.inspect}" do
      expect { use_test_database(current_attributes: setting) }.to raise_error(TaskerCore::ConfigurationError, /must be names of classes, such as/)
    end
  end

  it "add no layer where none are configured" do
    use_test_database(current_attributes: [])

    expect(described_class.for(TaskerCore.config)).to be_nil
    expect(carrier(Current.set(locale: "de") { enqueue })).to be_nil
  end
end
