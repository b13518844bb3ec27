# frozen_string_literal: true

RSpec.describe TaskerCore::BaseStepHandler do
  let(:step) { TaskerCore::StepContext.new(contract("start_attempt")["step"]) }

  it "returns what process returned" do
    handler = Class.new(described_class) { def process(task, sequence, step) = [task, sequence, step.name] }

    expect(handler.new.handle(:task, :sequence, step)).to eq([:task, :sequence, "charge"])
  end

  it "lets process_results make the results of the output" do
    handler = Class.new(described_class) do
      def process(_task, _sequence, _step) = 20
      def process_results(step, output, initial_results) = { step.name => output + 1, "before" => initial_results }
    end

    expect(handler.new.handle(:task, :sequence, step)).to eq("charge" => 21, "before" => nil)
  end

  it "says what is missing in a handler without process" do
    stub_const("Empty", Class.new(described_class))

    expect { Empty.new.handle(:task, :sequence, step) }.to raise_error(NotImplementedError, "Empty has no method process(task, sequence, step)")
  end

  it "doesn't let handle be overridden" do
    expect { Class.new(described_class) { def handle(*) = nil } }.to raise_error(TaskerCore::ConfigurationError, /must not define handle/)
  end

  it "may say transactional with an exclamation mark" do
    expect(Class.new(described_class) { transactional! }).to be_transactional
    expect(Class.new(described_class)).not_to be_transactional
  end

  it "says which queue it is meant for" do
    low = Class.new(described_class) { queue :low }

    expect([low.queue, Class.new(low).queue, described_class.queue]).to eq(["low", "low", nil])
  end
end
