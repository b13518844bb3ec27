# frozen_string_literal: true

require "active_job"
require "active_support/current_attributes"

RSpec.describe TaskerCore::CurrentValues do
  before do
    ActiveSupport::CurrentAttributes.clear_all # before Rails 7.2 it keeps instances by the class's name, also those of other specs
    stub_const("Current", Class.new(ActiveSupport::CurrentAttributes) { attribute :user, :locale, :request })
    stub_const("Audit::Current", Class.new(ActiveSupport::CurrentAttributes) { attribute :actor })
    use_test_database(current_attributes: ["Current", Audit::Current], headers_keys: [key])
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

  let(:key) { "k" * 32 }
  let(:saw) { [] }
  let(:template) { register_template([{ position: 0, name: "work", handler_class: "Work", attempt_limit: 3 }]) }

  def enqueue(**options)
    task_id = TaskerCore.enqueue_task(namespace: "spec", name: template, connection: TestDatabase.connection, **options)
    WorkflowHelpers::DispatchedStep.new(task_id, enqueue_step(task_id, 1), 1, "Work")
  end

  def carrier(step) = JSON.parse(TestDatabase.value("SELECT carrier FROM tasker.tasks WHERE task_id = $1", step.task_id) || "null")

  # What is signed.
  def carried(step) = JSON.parse(carrier(step).dig("current_attributes", "text"))

  def write_carrier(step, carrier)
    TestDatabase.connection.exec_params("UPDATE tasker.tasks SET carrier = $2 WHERE task_id = $1", [step.task_id, JSON.generate(carrier)])
  end

  # What a process with the key might write.
  def signed(values, codec: "active_job", name: template, keys: [key])
    { "current_attributes" => TaskerCore::HeaderKeys.new(keys).sign(JSON.generate({ codec:, values: }), "spec", name) }
  end

  it "are around the handler what they were where the task was enqueued, and gone afterwards" do
    step = Current.set(user: Account.new(7), locale: :de) { Audit::Current.set(actor: "ops") { enqueue } }
    perform(step)

    expect(saw).to eq([[Account.new(7), :de, "ops"]])
    expect([Current.user, Current.locale, Audit::Current.actor]).to eq([nil, nil, nil])
    expect(carried(step).dig("values", "Current", "user")).to eq("_aj_globalid" => "gid://spec/Account/7")
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

    expect(carried(inner)).to eq("codec" => "active_job", "values" => { "Current" => {
                                   "locale" => { "_aj_serialized" => "ActiveJob::Serializers::SymbolSerializer", "value" => "de" }
                                 } })
  end

  it "are plain JSON without ActiveJob" do
    hide_const("ActiveJob")
    perform(Current.set(locale: "de") { enqueue })

    expect(saw).to eq([[nil, "de", nil]])
  end

  it "that can't travel are refused by name, and may be left out" do
    Current.set(request: Object.new, locale: "de") do
      expect { enqueue }.to raise_error(TaskerCore::TaskRefusedError, /Current\.request can't travel.*current_attributes = \{ "Current" => /m)

      use_test_database(current_attributes: { "Current" => %w[locale] }, headers_keys: [key])
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

  it "may be of every plain kind" do
    values = [:de, Date.new(2026, 1, 2), Time.utc(2026, 1, 2), DateTime.new(2026, 1, 2), Time.utc(2026).in_time_zone("UTC"), 5.minutes, { a: [1.5, nil] }]
    perform(Current.set(locale: values) { enqueue })

    expect(saw.first[1]).to eq(values)
  end

  it "with another serializer need its name in the configuration, where they are written and where they are read" do
    stub_const("Money", Struct.new(:cents))
    stub_const("MoneySerializer", Class.new(ActiveJob::Serializers::ObjectSerializer) do
      def serialize(money) = super("cents" => money.cents)
      def deserialize(hash) = Money.new(hash["cents"])
      def klass = Money
    end)
    ActiveJob::Serializers.add_serializers(MoneySerializer)
    Current.set(locale: Money.new(5)) do
      expect { enqueue }.to raise_error(TaskerCore::TaskRefusedError, /Current\.locale can't travel.*MoneySerializer is not in config\.headers_serializers/)

      use_test_database(headers_serializers: [MoneySerializer])
      steps = [enqueue, enqueue]
      perform(steps.first)
      expect(saw).to eq([[nil, Money.new(5), nil]])

      use_test_database(headers_serializers: [])
      expect { perform(steps.last) }.to raise_error(TaskerCore::HeadersRefusedError, /MoneySerializer wrote one/)
    end
  ensure
    ActiveJob::Serializers._additional_serializers.delete(MoneySerializer)
  end

  it "are no classes, which name what a process loads" do
    expect { Current.set(locale: String) { enqueue } }.to raise_error(TaskerCore::TaskRefusedError, /ModuleSerializer is not in/)
  end

  describe "that another login wrote" do
    before do
      called = calls
      stub_const("Gadget", Class.new do
        define_method(:initialize) { called << :new }
        define_method(:deserialize) { |*| called << :deserialize }
        define_singleton_method(:deserialize) { |*| called << :deserialize_of_class }
        define_singleton_method(:find) { |*| called << :find }
      end)
      stub_const("Current", Class.new(ActiveSupport::CurrentAttributes) { attribute :user, :locale, :admin })
      use_test_database(current_attributes: { "Current" => %i[user locale] })
    end

    let(:calls) { [] }
    let(:gadget) { { "_aj_serialized" => "Gadget", "value" => 1 } }

    def expect_refusal(carrier, message)
      step = enqueue
      write_carrier(step, carrier)
      expect { perform(step) }.to raise_error(TaskerCore::HeadersRefusedError, /task #{step.task_id} are refused: .*#{message}/)
      expect([saw, calls]).to eq([[], []])
      expect(logged).to include("the CurrentAttributes of task #{step.task_id} are refused")
    end

    it "are refused without a signature, and call no class that they name" do
      [{ "user" => { "_aj_globalid" => "gid://spec/Gadget/1" } }, { "locale" => gadget }].each do |values|
        expect_refusal({ current_attributes: { codec: "active_job", values: { Current: values } } }, "not signed")
      end
      [5, "text", [], {}, { text: "{}", key: 1, mac: nil }].each do |member|
        expect_refusal({ current_attributes: member }, "not signed")
      end
    end

    it "are refused when they were changed, or come from a task of another template" do
      genuine = signed({ "Current" => { "locale" => "de" } })["current_attributes"]
      expect_refusal({ current_attributes: { **genuine, "text" => genuine["text"].sub("de", "en") } }, "signature does not fit")
      ["", "0" * 64, "#{genuine['mac']}0"].each do |mac|
        expect_refusal({ current_attributes: { **genuine, "mac" => mac } }, "signature does not fit")
      end
      expect_refusal(signed({ "Current" => { "locale" => "de" } }, name: "other"), "signature does not fit")
    end

    it "are refused when the key is none of the configured" do
      expect_refusal(signed({ "Current" => { "locale" => "de" } }, keys: ["x" * 32]), "which config.headers_keys doesn't have")
    end

    it "set no attribute and no class that is not configured, even when they are signed" do
      stub_const("Other", Class.new(ActiveSupport::CurrentAttributes) { attribute :user })
      step = enqueue
      write_carrier(step, signed({ "Current" => { "locale" => "de", "admin" => gadget }, "Other" => { "user" => 1 }, "Kernel" => { "exit" => 1 } }))
      seen = []
      Work.define_method(:process) { |*| (seen << Current.attributes.transform_keys(&:to_sym) << Other.user) && nil }
      perform(step)

      expect(seen).to eq([{ locale: "de" }, nil])
      expect(calls).to be_empty
      left = logged[/task #{step.task_id} carries (.*), which config\.current_attributes does not name/, 1]
      expect(left.split(", ")).to contain_exactly("Current.admin", "Other.user", "Kernel.exit")
    end

    it "call no serializer that is not allowed, however deep, even when they are signed" do
      [gadget, [{ "a" => gadget }], { "_aj_serialized" => "ActiveJob::Serializers::ModuleSerializer", "value" => "Gadget" },
       { "_aj_serialized" => "ActiveJob::Serializers::RangeSerializer", "value" => [gadget] }, { "_aj_serialized" => ["Gadget"] }].each do |value|
        expect_refusal(signed({ "Current" => { "locale" => value } }), "not in config.headers_serializers")
      end
    end
  end

  describe "are signed" do
    it "by the first key, and verified by all" do
      step = Current.set(locale: "de") { enqueue }
      use_test_database(headers_keys: ["n" * 32, key])
      perform(step)
      perform(Current.set(locale: "en") { enqueue })
      expect(saw.map { |_, locale| locale }).to eq(%w[de en])

      use_test_database(headers_keys: ["n" * 32])
      expect { perform(Current.set(locale: "de") { signed_with(key) { enqueue } }) }.to raise_error(TaskerCore::HeadersRefusedError)
    end

    def signed_with(key)
      before = TaskerCore.config.headers_keys
      use_test_database(headers_keys: [key])
      yield
    ensure
      use_test_database(headers_keys: before)
    end

    it "so that jsonb may write them its own way" do
      step = Current.set(locale: { "b" => 1.0e2, "a" => "ü\u2028", "aa" => 1 }) { enqueue }
      perform(step)

      expect(saw.first[1]).to eq("b" => 100.0, "a" => "ü\u2028", "aa" => 1)
    end

    it "with a key that is there: without one a task with values is refused, and others are not" do
      use_test_database(headers_keys: nil)
      expect { Current.set(locale: "de") { enqueue } }.to raise_error(TaskerCore::ConfigurationError, /config\.headers_keys = \[key\].*SecureRandom\.hex\(32\)/)
      perform(enqueue)
      expect(saw).to eq([[nil, nil, nil]])
    end

    it "with a key that comes of Rails' secret_key_base" do
      generator = ActiveSupport::KeyGenerator.new("base" * 16, iterations: 10)
      application = Struct.new(:key_generator, :config).new(generator, Struct.new(:filter_parameters).new([]))
      stub_const("Rails", Class.new { define_singleton_method(:application) { application } })
      use_test_database(headers_keys: nil)
      steps = Current.set(locale: "de") { [enqueue, enqueue] }
      perform(steps.first)
      expect(saw).to eq([[nil, "de", nil]])

      use_test_database(headers_keys: [generator.generate_key("tasker_core headers", 32)])
      perform(steps.last)
      expect(saw.size).to eq(2)
    end

    it "by keys that are long enough, and that no error shows" do
      ["short", [], ["short"], [7]].each do |keys|
        expect { use_test_database(headers_keys: keys) }
          .to raise_error(TaskerCore::ConfigurationError, /\Aheaders_keys must be a list of Strings of at least 32 bytes/)
      end
      expect(TaskerCore::HeaderKeys.new([key]).inspect).not_to include(key)
      expect { use_test_database(headers_keys: [key], headers_serializers: "x") }
        .to raise_error(TaskerCore::ConfigurationError, /headers_serializers must be names/)
    end
  end
end
