# frozen_string_literal: true

RSpec.describe TaskerCore::WorkflowCoordinator do
  subject(:coordinator) { described_class.new }

  before { use_test_database }

  def update(sql, *values) = TestDatabase.connection.exec_params(sql, values)

  def events(task_id) = TestDatabase.connection.exec_params("SELECT name FROM tasker.events WHERE task_id = $1", [task_id]).column_values(0)

  # A task whose step "work" waits for its retry.
  def waiting_task(owner: nil)
    step = dispatch("Orders::Charge", dependencies: { "reserve" => { "at" => 9 } })
    update("DELETE FROM tasker.dispatches WHERE step_id = $1", step.step_id)
    update("UPDATE tasker.steps SET state = 'in_progress' WHERE step_id = $1", step.step_id)
    update("UPDATE tasker.steps SET state = 'waiting_for_retry', retry_at = now() + interval '1 hour', error = '{\"message\": \"busy\"}' WHERE step_id = $1",
           step.step_id)
    update("UPDATE tasker.tasks SET state = 'in_progress', started_at = now(), owner = $2 WHERE task_id = $1", step.task_id, owner)
    step
  end

  def due?(step) = TestDatabase.value("SELECT retry_at <= now() FROM tasker.steps WHERE step_id = $1", step.step_id) == "t"

  it "says how a task stands" do
    step = waiting_task
    result = coordinator.status(step.task_id)

    expect(result).to have_attributes(task_id: step.task_id, namespace: "spec", version: "1.0.0", state: "in_progress", execution_status: "waiting_for_retry",
                                      total_steps: 2, completed_steps: 1, failed_steps: 0, finished_at: nil)
    expect(result.steps.map(&:name)).to eq(%w[reserve work])
    expect(result.result_of("reserve")).to eq("at" => 9)
    expect(result.step("work")).to have_attributes(state: "waiting_for_retry", attempts: 1, error: { "message" => "busy" })
    expect(result.step("work").retry_at).to be_within(5).of(Time.now + 3600)
    expect(result.started_at).to be_utc
    micros = TestDatabase.value("SELECT extract(microseconds FROM started_at)::int % 1000000 FROM tasker.tasks WHERE task_id = $1", step.task_id)
    expect(result.started_at.usec).to eq(micros.to_i)
  end

  it "sees what a connection's transaction sees, when it is given one" do
    connection = PG.connect(TestDatabase.url)
    connection.exec("BEGIN")
    task_id = TaskerCore.enqueue_task(namespace: "spec", name: register_template([{ position: 0, name: "a", handler: "tasker.echo", attempt_limit: 1 }]),
                                      connection:)

    expect(described_class.new(connection:).status(task_id).state).to eq("pending")
    expect { coordinator.status(task_id) }.to raise_error(TaskerCore::TaskNotFoundError, /no task #{task_id}, or the transaction that inserts it has not/)
  ensure
    connection.close
  end

  it "says what may start now" do
    step = waiting_task
    expect(coordinator.viable_steps(step.task_id)).to be_empty

    update("INSERT INTO tasker.events (task_id, step_id, name, created_at) VALUES ($1, $2, 'step.retry_requested', '2026-01-02 03:04:05.5+00')",
           step.task_id, step.step_id)
    update("UPDATE tasker.steps SET retry_at = now() - interval '1 s' WHERE step_id = $1", step.step_id)

    expect(coordinator.viable_steps(step.task_id)).to match [have_attributes(
      step_id: step.step_id, task_id: step.task_id, name: "work", current_state: "waiting_for_retry", dependencies_satisfied: true, retry_eligible: true,
      attempts: 1, retry_limit: 3, last_failure_at: Time.utc(2026, 1, 2, 3, 4, 5.5r), next_retry_at: be_within(5).of(Time.now),
      explanation: /may start/
    )]
  end

  it "has a retry made now when it is asked for a run" do
    step = waiting_task

    expect(coordinator.execute_task_workflow(step.task_id)).to be_a(TaskerCore::TaskResult).and have_attributes(task_id: step.task_id)
    expect(due?(step)).to be(true)
    expect(events(step.task_id)).to include("task.run_now")
  end

  it "does nothing when a worker is on the task, when it is paused, and when it has ended" do
    owned = waiting_task(owner: 1)
    paused = waiting_task.tap { |step| update("UPDATE tasker.tasks SET paused_at = now() WHERE task_id = $1", step.task_id) }
    ended = waiting_task.tap { |step| update("UPDATE tasker.tasks SET state = 'cancelled' WHERE task_id = $1", step.task_id) }

    [owned, paused, ended].each do |step|
      coordinator.handle(step.task_id)
      expect(due?(step)).to be(false)
      expect(events(step.task_id)).not_to include("task.run_now")
    end
  end

  it "leaves a task that is to start later, unless an operator wants it now" do
    template = register_template([{ position: 0, name: "a", handler: "tasker.echo", attempt_limit: 1 }])
    task_id = TaskerCore.enqueue_task(namespace: "spec", name: template, run_at: Time.now + 3600, connection: TestDatabase.connection)
    run_at = -> { TestDatabase.value("SELECT run_at FROM tasker.tasks WHERE task_id = $1", task_id) }

    coordinator.handle(task_id)
    expect(run_at.call).not_to be_nil

    coordinator.run_now(task_id, who: "ops", why: "customer waits")
    expect(run_at.call).to be_nil
    expect(JSON.parse(TestDatabase.value("SELECT data FROM tasker.events WHERE task_id = $1 AND name = 'task.run_now'", task_id)))
      .to include("by" => "ops", "reason" => "customer waits", "login" => a_kind_of(String))
  end

  it "says what can't be" do
    ended = waiting_task.tap { |step| update("UPDATE tasker.tasks SET state = 'cancelled' WHERE task_id = $1", step.task_id) }

    expect { coordinator.run_now(ended.task_id) }.to raise_error(TaskerCore::StateTransitionError, /is cancelled: there is nothing to run/)
    %i[status handle run_now].each { |verb| expect { coordinator.public_send(verb, 1) }.to raise_error(TaskerCore::TaskNotFoundError, /no task 1,/) }
    expect { coordinator.status("x") }.to raise_error(TaskerCore::ValidationError, /an Integer, not "x"/)
    expect { coordinator.status(10**20) }.to raise_error(TaskerCore::ValidationError, /out of range/)
    expect(coordinator.viable_steps(1)).to be_empty
  end

  describe "#wait" do
    let!(:step) { waiting_task }

    def end_task = update("UPDATE tasker.tasks SET state = 'error', finished_at = now() WHERE task_id = $1", step.task_id)

    def awaited? = TestDatabase.value("SELECT count(*) FROM tasker.task_waiters WHERE task_id = $1", step.task_id).to_i.positive?

    it "returns how the task ended, as soon as it does" do
      waiting = Thread.new { coordinator.wait(step.task_id, timeout: 30) }
      eventually("somebody waits") { awaited? }
      end_task

      expect(waiting.value).to have_attributes(state: "error", failed?: true, finished?: true)
    end

    it "doesn't wait for what has ended" do
      end_task

      expect(coordinator.wait(step.task_id, timeout: 0)).to be_failed
    end

    it "gives up in time, and says how the task stands" do
      expect { coordinator.wait(step.task_id, timeout: 0.05) }
        .to raise_error(TaskerCore::TimeoutError, %r{task #{step.task_id} \(spec/.*has not ended within 0.05 s: it is in_progress, waiting for retry})
    end

    it "knows no task that is not there" do
      expect { coordinator.wait(1, timeout: 1) }.to raise_error(TaskerCore::TaskNotFoundError)
    end

    it "is what a task handler does when told to" do
      expect { TaskerCore::BaseTaskHandler.new.handle(step.task_id, wait: true, timeout: 0.01) }.to raise_error(TaskerCore::TimeoutError)
      end_task
      expect(TaskerCore::BaseTaskHandler.new.handle(step.task_id, wait: true)).to be_finished
    end
  end
end
