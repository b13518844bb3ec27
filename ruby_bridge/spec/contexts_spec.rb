# frozen_string_literal: true

RSpec.describe "What a handler is given" do
  let(:answer) { contract("start_attempt") }

  def deeply_frozen?(value)
    value.frozen? && case value
                     when Hash then value.all? { |key, member| key.frozen? && deeply_frozen?(member) }
                     when Array then value.all? { |member| deeply_frozen?(member) }
                     else true
                     end
  end

  def frozen_with_parts?(object)
    object.frozen? && object.instance_variables.all? { |name| deeply_frozen?(object.instance_variable_get(name)) }
  end

  describe TaskerCore::TaskContext do
    subject(:task) { described_class.new(answer["task"]) }

    it "is what start_attempt answered" do
      expect(task).to have_attributes(task_id: 7, namespace: "shop", name: "fulfil_order", version: "1.0.0", priority: 2,
                                      correlation_id: "req-1", parent_task_id: 3, tags: ["web"], initiator: "checkout", source_system: "shop",
                                      reason: nil, context: { "order_id" => 5, "note" => "ünïcode ✓" })
    end

    it "has its time in UTC, to the microsecond" do
      expect(task.created_at).to eq(Time.utc(2026, 11, 23, 9, 0, 0.123456r))
      expect(task.created_at).to be_utc
    end

    it "looks into the context by string or symbol" do
      nested = described_class.new(answer["task"].merge("context" => { "order" => { "lines" => [{ "sku" => "A" }] } }))

      expect(task["order_id"]).to eq(5)
      expect(task[:order_id]).to eq(5)
      expect(nested.dig(:order, "lines", 0, :sku)).to eq("A")
      expect(nested.dig(:nothing, :there)).to be_nil
    end

    it "is frozen all the way down" do
      expect(frozen_with_parts?(task)).to be(true)
      expect { task.context["note"] << "!" }.to raise_error(FrozenError)
    end
  end

  describe TaskerCore::StepContext do
    subject(:step) { described_class.new(answer["step"]) }

    it "is what start_attempt answered" do
      expect(step).to have_attributes(step_id: 42, name: "charge", attempt: 2, attempts_used: 1, attempt_limit: 3, timeout: 30,
                                      heartbeat_seconds: 10, progress: { "rows" => 300 },
                                      handler_class: "Orders::Charge", config: { "currency" => "EUR" },
                                      depends_on: %w[reserve_inventory fraud_check], results: nil)
    end

    it "has the task's context and the results of its dependencies" do
      step = described_class.new(answer["step"], inputs: answer["task"]["context"], dependencies: answer["dependencies"])

      expect(step.inputs["order_id"]).to eq(5)
      expect(step.results_of(:fraud_check)).to eq("score" => 3)
      expect { step.results_of("fraud") }
        .to raise_error(KeyError, /\Astep charge does not depend on fraud; there are fraud_check, reserve_inventory; sequence.results_of reads any step/)
      expect(frozen_with_parts?(step)).to be(true)
    end

    it "knows its last attempt by those that count" do
      expect(step).not_to be_last_attempt
      expect(described_class.new(answer["step"].merge("attempt" => 5, "attempts_used" => 3))).to be_last_attempt
    end

    it "has one idempotency key for all attempts" do
      later = described_class.new(answer["step"].merge("attempt" => 3))

      expect(step.idempotency_key).to eq("tasker-5eed00000007-42")
      expect(later.idempotency_key).to eq(step.idempotency_key)
    end

    it "is frozen all the way down" do
      expect(frozen_with_parts?(step)).to be(true)
    end
  end

  describe TaskerCore::StepSequence do
    subject(:sequence) { described_class.new(7, answer["dependencies"], protocol: nil) }

    it "has the results of direct dependencies without asking" do
      expect(sequence.find_step_by_name("reserve_inventory")).to have_attributes(name: "reserve_inventory", results: { "reservation" => 9 })
      expect(sequence[:fraud_check].results).to eq("score" => 3)
      expect(sequence.results_of("fraud_check")).to eq("score" => 3)
      expect(sequence.dependencies.keys).to eq(%w[reserve_inventory fraud_check])
    end

    it "gives frozen results" do
      expect(deeply_frozen?(sequence[:fraud_check].results)).to be(true)
      expect(sequence[:fraud_check]).to be_frozen
    end

    context "with a task in Postgres" do
      before { use_test_database }

      let(:task_id) { dispatch("Orders::Charge", dependencies: { "reserve" => { "at" => 9 } }, others: { "greet" => ["hello"] }).task_id }
      let(:sequence) { described_class.new(task_id, { "reserve" => { "at" => 9 } }) }

      it "reads the state of a dependency when asked" do
        expect(sequence["reserve"].state).to eq("complete")
      end

      it "reads other steps when asked" do
        expect(sequence["greet"]).to have_attributes(name: "greet", state: "complete", results: ["hello"])
        expect(sequence["work"]).to have_attributes(state: "enqueued", results: nil)
      end

      it "reads each step once" do
        first = sequence["greet"]
        TestDatabase.connection.exec_params("UPDATE tasker.steps SET result = '[]' WHERE task_id = $1 AND name = 'greet'", [task_id])

        expect(sequence["greet"]).to equal(first)
      end

      it "knows which steps there are not" do
        expect([sequence.step?("nothing"), sequence.step?(:greet), sequence.step?("reserve")]).to eq([false, true, true])
        expect { sequence.find_step_by_name("gret") }.to raise_error(KeyError, 'the task has no step "gret"; did you mean greet?')
        expect { sequence.results_of("nothing") }.to raise_error(KeyError, /no step "nothing"; there are greet, reserve, work/)
      end
    end
  end
end
