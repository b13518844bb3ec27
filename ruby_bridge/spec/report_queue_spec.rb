# frozen_string_literal: true

RSpec.describe TaskerCore::ReportQueue do
  before { use_test_database }
  after { queue.close }

  let(:protocol) { TaskerCore.protocol }
  let(:lull) { Float::INFINITY } # all go by the queue's thread
  let(:queue) { described_class.new(protocol, lull:) }
  let(:answers) { {} }

  def started
    dispatch("Orders::Charge").tap { |step| protocol.start_attempts([[step.step_id, 1, step.ticket]], nil, 7) }
  end

  def success(step, json = '"charged"') = TaskerCore::Report.success(step.step_id, step.attempt, json, 7)

  # The answer is kept under the step, or the given key.
  def post(step, json = '"charged"', key: step, patience: 60)
    queue.post(success(step, json), patience:) { |*answer| answers[key] = answer }
  end

  # Posts the first, and the others while its call waits for a lock.
  def post_together(first, *others)
    TestDatabase.connection.transaction do |transaction|
      transaction.exec_params("SELECT FROM tasker.dispatches WHERE step_id = $1 FOR UPDATE", [first.step_id])
      post(first)
      eventually("the first call waits") { TestDatabase.gem_waits_for_lock? }
      others.each { |step, json = '"charged"'| post(step, json) }
      yield if block_given?
    end
    queue.drain
  end

  # Transactions that reported the steps; each writes its own.
  def transactions(steps)
    TestDatabase.connection.exec("SELECT DISTINCT xmin FROM tasker.steps WHERE step_id IN (#{steps.map(&:step_id).join(', ')})").ntuples
  end

  it "gives each report its own answer" do
    step = started
    post(step, key: :first)
    queue.drain
    post(step, key: :second)

    expect(queue.drain).to eq(0)
    expect(answers).to eq(first: [nil, nil, false], second: ["step #{step.step_id} (work) is complete", nil, false])
  end

  it "sends what comes during a call with the next one, and lets nobody wait" do
    steps = Array.new(6) { started }
    post_together(*steps)

    expect(answers.values_at(*steps)).to all(eq([nil, nil, false]))
    expect(steps.map(&:state)).to all(eq("complete"))
    expect(transactions(steps)).to eq(2)
  end

  it "lets one report that Postgres can't take fail alone" do
    steps = Array.new(4) { started }
    post_together(steps[0], steps[1], [steps[2], "1#{'0' * 200_000}"], steps[3])

    expect(answers[steps[2]][1]).to be_refuses_data
    expect(answers.values_at(*steps.values_at(0, 1, 3))).to all(eq([nil, nil, false]))
    expect(steps.map(&:state)).to eq(%w[complete complete in_progress complete])
  end

  it "sends again when the connection broke, and says so" do
    stub_const("TaskerCore::Patience::FIRST_DELAY", 0.01)
    steps = Array.new(3) { started }
    post_together(*steps) { TestDatabase.terminate_gem }

    expect(answers[steps[0]]).to eq([nil, nil, true])
    expect(steps.map(&:state)).to all(eq("complete"))
    expect(logged).to include("cannot report 1 attempts yet")
  end

  it "answers with the error when it may not try again" do
    step = started
    TestDatabase.connection.transaction do |transaction|
      transaction.exec_params("SELECT FROM tasker.dispatches WHERE step_id = $1 FOR UPDATE", [step.step_id])
      post(step, patience: 0)
      eventually("the call waits") { TestDatabase.gem_waits_for_lock? }
      TestDatabase.terminate_gem
      queue.drain
    end

    expect(answers[step]).to match([nil, an_instance_of(TaskerCore::DatabaseError), false])
    expect(step.state).to eq("in_progress")
  end

  it "goes on when a callback raises" do
    steps = Array.new(2) { started }
    queue.post(success(steps[0]), patience: 60) { raise KeyError, "oops" }
    post(steps[1])
    queue.drain

    expect(logged).to include("after a report: KeyError: oops")
    expect(steps.map(&:state)).to all(eq("complete"))
  end

  it "sends a report that is larger than a call may be, alone" do
    stub_const("#{described_class}::LIMIT_BYTES", 10)
    steps = Array.new(3) { started }
    post_together(*steps)

    expect(steps.map(&:state)).to all(eq("complete"))
    expect(transactions(steps)).to eq(3)
  end

  it "lets jobs wait when there is no room, and a shutdown through to them" do
    stub_const("#{described_class}::ROOM_REPORTS", 2)
    steps = Array.new(4) { started }
    threads = nil
    post_together(*steps[0, 2]) do
      threads = steps[2, 2].map { |step| Thread.new { Thread.handle_interrupt(Sidekiq::Shutdown => :never) { post(step) } } }
      eventually("they wait") { threads.all? { |thread| thread.status == "sleep" } }
      threads[1].report_on_exception = false
      threads[1].raise(Sidekiq::Shutdown)
      expect { threads[1].join }.to raise_error(Sidekiq::Shutdown)
    end
    threads[0].join
    queue.drain

    expect(steps.map(&:state)).to eq(%w[complete complete complete in_progress])
  end

  it "lets nobody wait for a step that an open transaction holds" do
    steps = Array.new(3) { started }
    TestDatabase.connection.transaction do |transaction|
      transaction.exec_params("SELECT FROM tasker.steps WHERE step_id = $1 FOR UPDATE", [steps[1].step_id])
      steps.each { |step| post(step) }
      eventually("the others are reported") { steps.map(&:state) == %w[complete in_progress complete] }
    end
    queue.drain

    expect(answers.values_at(*steps)).to all(eq([nil, nil, false]))
    expect(steps[1].state).to eq("complete")
  end

  it "answers with an error when its step is held and it may not try again" do
    step = started
    TestDatabase.connection.transaction do |transaction|
      transaction.exec_params("SELECT FROM tasker.steps WHERE step_id = $1 FOR UPDATE", [step.step_id])
      post(step, patience: 0)
      queue.drain
    end

    expect(answers[step][1]).to have_attributes(message: /holds the step/)
  end

  it "posts what a callback posts though there is no room" do
    stub_const("#{described_class}::ROOM_REPORTS", 1)
    first, second = Array.new(2) { started }
    queue.post(success(first), patience: 60) { post(second) }
    queue.drain

    expect(second.state).to eq("complete")
  end

  it "starts again when something is posted after it was closed" do
    step = started
    queue.close
    post(step)
    queue.drain

    expect(step.state).to eq("complete")
  end

  it "says how much is left when it may not wait any longer" do
    step = started
    TestDatabase.connection.transaction do |transaction|
      transaction.exec_params("SELECT FROM tasker.dispatches WHERE step_id = $1 FOR UPDATE", [step.step_id])
      post(step)
      eventually("the call waits") { TestDatabase.gem_waits_for_lock? }

      expect(queue.drain(0.01)).to eq(1)
    end
    expect(queue.drain).to eq(0)
  end

  context "when nothing has come for a while" do
    let(:lull) { 0 } # what comes when nothing is on its way

    def threads = Thread.list.count { |thread| thread.name == "tasker reports" }

    it "sends a report on the spot" do
      steps = Array.new(2) { started }
      expect { steps.each { |step| post(step) } }.not_to(change { threads })

      expect(answers.values_at(*steps)).to all(eq([nil, nil, false]))
      expect(steps.map(&:state)).to all(eq("complete"))
    end

    it "leaves what comes meanwhile to its thread" do
      steps = Array.new(3) { started }
      TestDatabase.connection.transaction do |transaction|
        transaction.exec_params("SELECT FROM tasker.dispatches WHERE step_id = $1 FOR UPDATE", [steps[0].step_id])
        first = Thread.new { post(steps[0]) }
        eventually("the first call waits") { TestDatabase.gem_waits_for_lock? }
        steps[1..].each { |step| post(step) }
        eventually("the others are reported") { steps[1..].all? { |step| step.state == "complete" } }
        expect(first).to be_alive
      end
      queue.drain

      expect(answers.values_at(*steps)).to all(eq([nil, nil, false]))
    end

    it "leaves it to its thread when the connection breaks, and to whoever asked when the data is refused" do
      steps = Array.new(2) { started }
      sender = nil
      TestDatabase.connection.transaction do |transaction|
        transaction.exec_params("SELECT FROM tasker.dispatches WHERE step_id = $1 FOR UPDATE", [steps[0].step_id])
        sender = Thread.new { post(steps[0]) }
        eventually("the call waits") { TestDatabase.gem_waits_for_lock? }
        TestDatabase.terminate_gem
        sender.join # the job ends while Postgres is away
      end
      queue.drain
      post(steps[1], "1#{'0' * 200_000}")

      expect(answers[steps[0]]).to eq([nil, nil, true])
      expect(answers[steps[1]][1]).to be_refuses_data
    end

    it "loses nothing when the sending thread is ended" do
      step = started
      TestDatabase.connection.transaction do |transaction|
        transaction.exec_params("SELECT FROM tasker.dispatches WHERE step_id = $1 FOR UPDATE", [step.step_id])
        sender = Thread.new { post(step) }
        eventually("the call waits") { TestDatabase.gem_waits_for_lock? }
        sender.kill.join
      end
      queue.drain

      expect(step.state).to eq("complete")
    end

    it "tries later when an open transaction holds the step" do
      step = started
      TestDatabase.connection.transaction do |transaction|
        transaction.exec_params("SELECT FROM tasker.steps WHERE step_id = $1 FOR UPDATE", [step.step_id])
        post(step)
        expect(answers).to be_empty
      end
      queue.drain

      expect(answers[step]).to eq([nil, nil, false])
    end
  end
end
