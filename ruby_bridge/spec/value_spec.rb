# frozen_string_literal: true

RSpec.describe TaskerCore::Value do
  let(:step) { { step_id: 1, name: "charge", state: "complete", attempts: 2, result: { "id" => ["ch_1"] } } }
  let(:value) { TaskerCore::StepResult.new(**step, started_at: Time.utc(2026, 1, 1), finished_at: Time.utc(2026, 1, 1, 0, 0, 2.5r)) }

  it "is equal to one with the same attributes, also as a key" do
    other = value.with(attempts: 2)

    expect(other).to eq(value)
    expect({ value => 1 }[other]).to eq(1)
    expect(value.with(attempts: 3)).not_to eq(value)
    expect(value).not_to eq(value.to_h)
  end

  it "is frozen all the way down" do
    expect(value).to be_frozen
    expect { value.result["id"] << "x" }.to raise_error(FrozenError)
  end

  it "is read by method, by name and by pattern" do
    expect([value.name, value["name"], value[:name]]).to eq(%w[charge charge charge])
    expect { value["names"] }.to raise_error(KeyError, /StepResult has no names/)
    matched = case value
              in { state: "complete", name:, attempts: 2.. } then name
              end
    expect(matched).to eq("charge")
  end

  it "says which attributes it has" do
    expect { value.with(shoe_size: 1) }.to raise_error(ArgumentError, /has no shoe_size; it has step_id, name/)
  end

  it "says what a step came to" do
    failed = value.with(state: "error", error: { "message" => "declined", "permanent" => true, "code" => "funds", "backtrace" => ["a.rb:1"] })

    expect(value).to have_attributes(complete?: true, failed?: false, satisfied?: true, duration: 2.5, exception: nil)
    expect(failed).to have_attributes(complete?: false, failed?: true, satisfied?: false)
    expect(failed.exception).to be_a(TaskerCore::PermanentError).and have_attributes(message: "declined", error_code: "funds", backtrace: ["a.rb:1"])
  end

  it "says what a task came to" do
    task = TaskerCore::TaskResult.new(task_id: 7, state: "in_progress", steps: [value])

    expect(task).to have_attributes(finished?: false, complete?: false, failed?: false, duration: nil)
    expect(task.with(state: "cancelled")).to be_finished
    expect(task.result_of(:charge)).to eq("id" => ["ch_1"])
    expect { task.result_of("charges") }.to raise_error(KeyError, 'task 7 has no step "charges"; did you mean charge?')
  end
end

RSpec.describe TaskerCore::TaskRequest do
  it "is made of a Hash with either kind of keys" do
    request = described_class.from({ "name" => "fulfil", namespace_name: "shop", context: { at: Time.at(0) }, tags: [:a] })

    expect(request).to have_attributes(namespace: "shop", name: "fulfil", version: nil, context: { "at" => "1970-01-01T00:00:00.000000Z" }, tags: ["a"])
    expect(described_class.from(request)).to equal(request)
    expect(described_class.new(name: "fulfil").namespace).to eq("default")
  end

  it "leaves what it was made of alone" do
    note = +"a"
    described_class.new(name: note, context: { note: })

    expect(note << "b").to eq("ab")
  end

  it "says what is wrong" do
    { { nam: "x" } => /has no nam; did you mean name\?/, {} => /needs a name/, { name: "x", context: [1] } => /is a Hash, not Array/,
      { name: "x", context: { a: Float::NAN } } => /not JSON: \$\.a is NaN/, nil => /a Hash, not nil/, "x" => /a Hash, not "x"/ }.each do |given, message|
      expect { described_class.from(given) }.to raise_error(TaskerCore::ValidationError, message)
    end
  end
end
