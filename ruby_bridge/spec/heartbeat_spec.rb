# frozen_string_literal: true

RSpec.describe TaskerCore::Heartbeat do
  before { use_test_database }

  # Runs a step whose handler is the block.
  def run(**settings, &process)
    handler = Class.new(TaskerCore::BaseStepHandler)
    handler.define_method(:process, process)
    stub_const("Orders::Import", handler)
    dispatch("Orders::Import", **settings).tap do |step|
      perform(step)
    rescue StandardError => e
      @error = e
    end
  end

  def progress(step) = JSON.parse(TestDatabase.value("SELECT progress FROM tasker.steps WHERE step_id = $1", step.step_id) || "null")

  def beat_by(step) = TestDatabase.value("SELECT extract(epoch FROM beat_by) FROM tasker.dispatches WHERE step_id = $1", step.step_id)

  it "puts off the time by which the next one is due" do
    before = after = nil
    test = self
    run(heartbeat_seconds: 0.03) do |_task, _sequence, step|
      row = Struct.new(:step_id).new(step.step_id)
      before = test.beat_by(row)
      test.eventually("the pause between beats is over") do
        step.heartbeat!
        test.beat_by(row) != before
      end
      after = test.beat_by(row)
    end

    expect(after.to_f).to be > before.to_f
  end

  it "keeps the last progress when the attempt fails, and the next attempt has it" do
    step = run do |_task, _sequence, work|
      (1..5).each { |n| work.heartbeat!({ rows: n * 100 }) }
      raise "broken"
    end

    expect(progress(step)).to eq("rows" => 500)
    again = TaskerCore::StepContext.new(contract("start_attempt")["step"].merge("progress" => progress(step)))
    expect(again.progress).to eq("rows" => 500)
  end

  it "stops a handler whose attempt is over" do
    step = run do |task, _sequence, work|
      TestDatabase.connection.exec_params("SELECT tasker.cancel_task($1)", [task.task_id])
      raise "goes on" unless work.cancelled?

      work.heartbeat!
    end

    expect(@error).to be_a(TaskerCore::AttemptOverError).and have_attributes(message: /attempt 1 of step #{step.step_id} \(work\) is over/)
    expect(step.state).to eq("cancelled")
  end

  it "refuses a progress that is too large, or not JSON, and names the place" do
    refusals = []
    step = run do |_task, _sequence, work|
      [{ text: "x" * 70_000 }, { list: [1, Object.new] }, { text: "a\0b" }].each do |value|
        work.heartbeat!(value)
      rescue TaskerCore::ProgressRefusedError => e
        refusals << e.message
      end
      "done"
    end

    expect(refusals).to match([/has 7\d+ bytes, at most 65536/, /list.*Object/, /./])
    expect(step.state).to eq("complete")
  end

  it "does nothing in a step that is not run by the engine" do
    step = TaskerCore::StepContext.new(contract("start_attempt")["step"])

    expect(step.heartbeat!({ rows: 1 })).to be_nil
    expect(step).not_to be_cancelled
  end

  it "leaves its lines in Sidekiq's log with task and step" do
    context = nil
    step = run { |*| context = Sidekiq::Context.current.dup }

    expect(context).to include(task: step.task_id, step: "work", attempt: 1)
    expect(Sidekiq::Context.current).to eq({})
  end
end
