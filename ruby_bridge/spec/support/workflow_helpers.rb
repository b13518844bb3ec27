# frozen_string_literal: true

require "securerandom"

# Puts steps where a worker would have put them.
module WorkflowHelpers
  # One step and what Postgres says about it.
  class DispatchedStep
    attr_reader :task_id, :step_id, :attempt, :handler

    def initialize(task_id, step_id, attempt, handler)
      @task_id = task_id
      @step_id = step_id
      @attempt = attempt
      @handler = handler
    end

    def arguments = { "v" => 1, "step_id" => step_id, "attempt" => attempt, "task_id" => task_id, "handler" => handler, "ticket" => ticket }

    def ticket = (step_id * 1000) + attempt

    # Of its start, once it has been started.
    def secret = TestDatabase.value("SELECT secret FROM tasker.dispatches WHERE step_id = $1", step_id)&.to_i

    def state = TestDatabase.value("SELECT state FROM tasker.steps WHERE step_id = $1", step_id)

    def result = parsed(TestDatabase.value("SELECT result FROM tasker.steps WHERE step_id = $1", step_id))

    # What was reported and waits for the finalizer; nil: nothing.
    def failure
      row = TestDatabase.row("SELECT failure FROM tasker.dispatches WHERE step_id = $1", step_id)
      row && parsed(row["failure"])
    end

    def process_id = TestDatabase.value("SELECT process_id FROM tasker.dispatches WHERE step_id = $1", step_id)&.to_i

    def events
      TestDatabase.connection.exec_params("SELECT name FROM tasker.events WHERE step_id = $1 ORDER BY event_id", [step_id]).column_values(0)
    end

    private

    def parsed(text) = text && JSON.parse(text)
  end

  # @return [String] name of a registered template in namespace "spec"
  def register_template(steps)
    name = "workflow_#{SecureRandom.hex(6)}"
    TestDatabase.connection.exec_params(
      "SELECT tasker.register_template('spec', $1, '1.0.0', NULL, '{}', $1, 10, $2)", [name, JSON.generate(steps)]
    )
    name
  end

  # @return [DispatchedStep] a step in state enqueued, whose job would be on its way
  def dispatch(handler, attempt: 1, context: { "order_id" => 5 }, dependencies: {}, others: {}, **settings)
    finished = { **dependencies, **others }
    steps = finished.keys.map.with_index { |name, position| { position:, name:, handler: "tasker.echo", attempt_limit: 1 } }
    steps << { position: finished.size, name: "work", handler_class: handler, attempt_limit: 3,
               depends_on: (0...dependencies.size).to_a, **settings }
    task_id = insert_task(register_template(steps), context)
    finish(task_id, finished)
    DispatchedStep.new(task_id, enqueue_step(task_id, attempt), attempt, handler)
  end

  def perform(step, **changes)
    TaskerCore::StepJob.new.perform(step.arguments.merge(changes.transform_keys(&:to_s)))
  ensure
    TaskerCore.reports.drain
  end

  private

  def insert_task(template, context)
    TestDatabase.value("INSERT INTO tasker.tasks (namespace, name, context) VALUES ('spec', $1, $2) RETURNING task_id",
                       template, JSON.generate(context)).to_i
  end

  def finish(task_id, results)
    results.each do |name, result|
      TestDatabase.connection.exec_params(
        "UPDATE tasker.steps SET state = 'in_progress', attempts = 1 WHERE task_id = $1 AND name = $2", [task_id, name]
      )
      TestDatabase.connection.exec_params(
        "UPDATE tasker.steps SET state = 'complete', result = $3 WHERE task_id = $1 AND name = $2", [task_id, name, JSON.generate(result)]
      )
    end
  end

  def enqueue_step(task_id, attempt)
    TestDatabase.value(<<~SQL, task_id, attempt).to_i
      WITH step AS (
        UPDATE tasker.steps SET state = 'enqueued', attempts = $2 WHERE task_id = $1 AND name = 'work' RETURNING step_id, task_id)
      INSERT INTO tasker.dispatches (step_id, task_id, attempt, queue, ticket)
      SELECT step_id, task_id, $2, 'default', step_id * 1000 + $2 FROM step RETURNING step_id
    SQL
  end
end
