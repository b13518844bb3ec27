# frozen_string_literal: true

RSpec.describe TaskerCore::ReportGroup do
  before { use_test_database }

  let(:protocol) { TaskerCore.protocol }
  let(:group) { described_class.new(protocol) }

  def started
    dispatch("Orders::Charge").tap { |step| protocol.start_attempt(step.step_id, 1, nil) }
  end

  def success(step, json = '"charged"') = TaskerCore::Report.success(step.step_id, step.attempt, json)

  # Reports all at once: the first call waits for a lock until the others have queued up behind it.
  def report_together(first, *others)
    threads = []
    TestDatabase.connection.transaction do |transaction|
      transaction.exec_params("SELECT FROM tasker.steps WHERE step_id = $1 FOR UPDATE", [first.step_id])
      threads << Thread.new { group.report(success(first)) }
      eventually("the first call waits") { TestDatabase.gem_waits_for_lock? }
      threads += others.map { |report| Thread.new { group.report(report) } }
      threads.each { |thread| thread.report_on_exception = false }
      eventually("the others wait for it") { threads.all? { |thread| thread.status == "sleep" } }
      yield threads if block_given?
    end
    threads
  end

  # Transactions that reported the steps; each writes its own.
  def transactions(steps)
    TestDatabase.connection.exec("SELECT DISTINCT xmin FROM tasker.steps WHERE step_id IN (#{steps.map(&:step_id).join(', ')})").ntuples
  end

  it "gives each report its own answer" do
    step = started

    expect(group.report(success(step))).to be_nil
    expect(group.report(success(step))).to eq("step #{step.step_id} (work) is complete")
  end

  it "sends what comes during a call with the next one" do
    steps = Array.new(6) { started }
    threads = report_together(steps[0], *steps[1..].map { |step| success(step) })

    expect(threads.map(&:value)).to all(be_nil)
    expect(steps.map(&:state)).to all(eq("complete"))
    expect(transactions(steps)).to eq(2)
  end

  it "lets one report that Postgres can't take fail alone" do
    steps = Array.new(4) { started }
    threads = report_together(steps[0], success(steps[1]), success(steps[2], "1#{'0' * 200_000}"), success(steps[3]))

    expect(threads.values_at(0, 1, 3).map(&:value)).to all(be_nil)
    expect { threads[2].value }.to raise_error(TaskerCore::DatabaseError) { |e| expect(e).to be_refuses_data }
    expect(steps.map(&:state)).to eq(%w[complete complete in_progress complete])
  end

  it "tells each job that the connection broke" do
    steps = Array.new(3) { started }
    threads = report_together(steps[0], success(steps[1]), success(steps[2])) { TestDatabase.terminate_gem }

    expect { threads[0].value }.to raise_error(TaskerCore::DatabaseError) { |e| expect(e).to be_unanswered }
    expect(threads[1..].map(&:value)).to all(be_nil)
  end

  it "goes on when the thread that sends is killed" do
    steps = Array.new(3) { started }
    threads = report_together(steps[0], success(steps[1]), success(steps[2])) { |all| all[0].kill.join }

    expect(threads[1..].map(&:value)).to all(be_nil)
    expect(steps[1..].map(&:state)).to all(eq("complete"))
  end

  it "sends a report that is larger than a group may be, alone" do
    stub_const("#{described_class}::LIMIT_BYTES", 10)
    steps = Array.new(3) { started }
    threads = report_together(steps[0], success(steps[1]), success(steps[2]))

    expect(threads.map(&:value)).to all(be_nil)
    expect(transactions(steps)).to eq(3)
  end
end
