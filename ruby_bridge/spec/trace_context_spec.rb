# frozen_string_literal: true

# OpenTelemetry's gems are no Debian packages. This stands for the parts of its API
# that are used, as its documentation has them: a propagator that writes and reads
# traceparent and tracestate, and a current context.
module FakeOpenTelemetry
  class Context
    def self.current = Thread.current[:fake_otel_context]

    def self.with_current(context)
      before = current
      Thread.current[:fake_otel_context] = context
      yield
    ensure
      Thread.current[:fake_otel_context] = before
    end
  end

  module Propagation
    def self.inject(carrier) = Context.current && carrier.merge!(Context.current, "baggage" => "not ours")
    def self.extract(carrier) = carrier
  end

  def self.propagation = Propagation
end

RSpec.describe TaskerCore::TraceContext do
  JSON.parse(File.read(File.expand_path("../../contract/trace.json", __dir__))).each do |example|
    it "names the span of attempt #{example['attempt']} of step #{example['step_id']} as Go does" do
      expect(described_class.of_attempt(*example.values_at("traceparent", "step_id", "attempt"))).to eq(example["of_attempt"])
    end
  end

  it "takes what is no traceparent for none" do
    id = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7"
    wrong = ["00-#{id}-01-more", "00-#{id}-01\r\nX: 1", " 00-#{id}-01", "ff-#{id}-01", "00-#{id.upcase}-01", "00-#{'0' * 32}-00f067aa0ba902b7-01",
             "00-4bf92f3577b34da6a3ce929d0e0e4736-#{'0' * 16}-01", { "a" => 1 }]
    expect([nil, "", "00-12-34-01", 7, *wrong].map { |parent| described_class.of_attempt(parent, 1, 1) }).to all(be_nil)
  end

  it "takes more members from a later version" do
    expect(described_class.of_attempt("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", 7, 1)).to start_with("01-4bf92f35")
  end

  context "with OpenTelemetry" do
    before do
      stub_const("OpenTelemetry", FakeOpenTelemetry)
      use_test_database
      seen = saw
      stub_const("Work", Class.new(TaskerCore::BaseStepHandler) do
        define_method(:process) do |*|
          seen << OpenTelemetry::Context.current
          nil
        end
      end)
    end

    let(:saw) { [] }
    let(:parent) { "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01" }
    let(:template) { register_template([{ position: 0, name: "work", handler_class: "Work", attempt_limit: 3 }]) }

    def enqueue
      task_id = TaskerCore.enqueue_task(namespace: "spec", name: template, connection: TestDatabase.connection)
      WorkflowHelpers::DispatchedStep.new(task_id, enqueue_step(task_id, 1), 1, "Work")
    end

    it "a handler is in the trace of who enqueued its task, below its attempt" do
      step = OpenTelemetry::Context.with_current({ "traceparent" => parent, "tracestate" => "a=b" }) { enqueue }
      perform(step)

      expect(saw).to eq([{ "traceparent" => described_class.of_attempt(parent, step.step_id, 1), "tracestate" => "a=b" }])
      expect(OpenTelemetry::Context.current).to be_nil
      carried = JSON.parse(TestDatabase.value("SELECT carrier FROM tasker.tasks WHERE task_id = $1", step.task_id))
      expect(carried).to eq("traceparent" => parent, "tracestate" => "a=b")
    end

    it "what another login wrote in its place goes no further than its form" do
      ["a=b\r\nX-Admin: 1", "a" * 600, { a: 1 }].each do |state|
        step = enqueue
        TestDatabase.connection.exec_params("UPDATE tasker.tasks SET carrier = $2 WHERE task_id = $1",
                                            [step.task_id, JSON.generate(traceparent: parent, tracestate: state, baggage: "x")])
        perform(step)

        expect(saw.last).to eq("traceparent" => described_class.of_attempt(parent, step.step_id, 1))
      end
    end

    it "a task that nobody traces carries nothing" do
      step = enqueue
      perform(step)

      expect(saw).to eq([nil])
      expect(TestDatabase.value("SELECT carrier FROM tasker.tasks WHERE task_id = $1", step.task_id)).to be_nil
    end
  end
end
