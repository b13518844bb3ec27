# frozen_string_literal: true

require "tasker_core/testing/rspec"

RSpec.describe "TaskerCore::Testing.run_task" do
  def run_task(yaml, **options) = TaskerCore::Testing.run_task(yaml, **options)

  # The same fixtures as orchestrator/workflow_runs_test.go, which runs them through the engine's own loop.
  describe "against the engine" do
    JSON.parse(File.read(File.join(Contract::FOLDER, "workflow_runs.json"))).each do |fixture|
      it fixture["about"] do
        failing = lambda do |script|
          lambda do |_task, _sequence, step|
            outcome = script[step.attempt - 1] || script.last
            next outcome["result"] unless (failure = outcome["failure"])

            raise TaskerCore::PermanentError.new("as the script says", error_code: failure["code"]) if failure["permanent"]

            raise TaskerCore::RetryableError.new("as the script says", retry_after: failure["retry_after"])
          end
        end
        names = fixture["template"]["step_templates"].map { |step| step["name"] }
        stub = names.to_h { |name| [name, failing.call(fixture["script"].fetch(name, [{ "result" => name }]))] }
        run = run_task(fixture["template"], stub:, environment: nil)

        expect(
          "task" => run.state, "error" => run.error, "elapsed" => run.elapsed.to_f,
          "steps" => run.steps.transform_values { |step| { "state" => step.state, "attempts" => step.attempts.length, "result" => step.result } },
          "attempts" => run.attempts.map { |attempt| [attempt.step, attempt.number, attempt.at.to_f] }
        ).to eq(fixture["want"].merge("elapsed" => fixture["want"]["elapsed"].to_f,
                                      "attempts" => fixture["want"]["attempts"].map { |step, number, at| [step, number, at.to_f] }))
      end
    end
  end

  let(:fulfil) { <<~YAML }
    name: fulfil_order
    namespace_name: shop
    version: 1.2.0
    step_templates:
      - {name: reserve, handler_class: Shop::Reserve}
      - {name: notify, handler: tasker.http, handler_config: {url: "https://${HOST}/"}, skippable: yes_it_is}
      - {name: charge, handler_class: Shop::Charge, depends_on_steps: [reserve], heartbeat_seconds: 5, handler_config: {currency: EUR, at: [1, 1.5, on]}}
    environments:
      test:
        step_templates:
          - {name: notify, handler_class: Shop::Notify, depends_on_step: charge}
  YAML

  before do
    stub_const("Shop::Reserve", Class.new(TaskerCore::BaseStepHandler) { def process(task, *) = { stock: task["order_id"] } })
    stub_const("Shop::Charge", Class.new(TaskerCore::BaseStepHandler) do
      def process(_task, sequence, step)
        step.heartbeat!("rows" => (step.progress || { "rows" => 0 })["rows"] + 1)
        raise TaskerCore::RetryableError, "busy" if step.attempt < 3

        { stock: sequence["reserve"].results["stock"], config: step.config, progress: step.progress, key: step.idempotency_key }
      end
    end)
  end

  it "runs the app's handlers over the template" do
    run = run_task(fulfil.sub("yes_it_is", "true"), context: { order_id: 5 }, environment: "test", variables: { HOST: "example.org" },
                                                    stub: { notify: ->(task, all, _) { [task.name, all.results_of("charge")["stock"]] } })

    expect(run).to be_complete
    expect(run).to have_completed_steps("reserve", "charge", "notify")
    expect(run["charge"].result).to include("stock" => 5, "progress" => { "rows" => 2 }, "config" => { "currency" => "EUR", "at" => [1, 1.5, "on"] })
    expect(run.attempts.map { |attempt| [attempt.step, attempt.number, attempt.at, attempt.delay, attempt.state] })
      .to eq([["reserve", 1, 0, nil, "complete"], ["charge", 1, 0, 1, "waiting_for_retry"], ["charge", 2, 1, 2, "waiting_for_retry"],
              ["charge", 3, 3, nil, "complete"], ["notify", 1, 3, nil, "complete"]])
    expect(run["notify"].result).to eq(["fulfil_order", 5])
    expect(run.elapsed).to eq(3)
    expect(run.events.map(&:name)).to start_with("task.start_requested", "step.execution_requested", "step.handle", "step.completed")
    expect(run.events.last.to_h).to eq(name: "task.completed", step: nil, attempt: nil, at: 3)
    expect([run, run.steps, run.attempts, run.events, run["charge"].attempts]).to all(be_frozen)
  end

  it "gives every attempt of a step the same idempotency key" do
    keys = []
    run_task({ name: "a", step_templates: [{ name: "b", handler_class: "B" }] },
             stub: { b: ->(_, _, step) { keys << step.idempotency_key and raise "no" } })

    expect(keys.uniq.length).to eq(1)
    expect(keys.length).to eq(3)
  end

  it "takes stubs per attempt, skips, and another limit" do
    template = { name: "a", step_templates: [{ name: "one", handler: "go" }, { name: "two", handler: "go" },
                                             { name: "three", handler: "go", depends_on_step: "two" }] }
    run = run_task(template, skip: [:two], attempts: { one: 2 },
                             stub: { one: [IOError, ArgumentError.new("x"), { ok: 1 }], three: ->(_, all, _) { all.results_of("two") } })

    expect(run.steps.transform_values(&:state)).to eq("one" => "error", "two" => "skipped", "three" => "complete")
    expect(run["one"].error).to include("class" => "ArgumentError", "message" => "x", "attempt" => 2)
    expect(run.error).to eq("message" => "1 step failed: one", "steps" => ["one"])
  end

  it "lets time pass that a handler takes" do
    template = { name: "a", deadline_seconds: 100,
                 step_templates: [{ name: "slow", handler: "go", timeout_seconds: 10 }, { name: "later", handler: "go", depends_on_step: "slow" }] }
    waits = lambda do |*seconds|
      ->(_, _, step) { TaskerCore::Testing.travel(seconds[step.attempt - 1]) }
    end
    timed_out = run_task(template, stub: { slow: waits.call(11, 5), later: nil })
    overdue = run_task(template, stub: { slow: waits.call(9), later: waits.call(200) })
    waiting = run_task({ **template, retry: { backoff: "fixed", base_seconds: 90 } }, stub: { slow: IOError, later: nil })

    expect(timed_out.attempts.map { |attempt| [attempt.step, attempt.at, attempt.outcome.code] })
      .to eq([["slow", 0, "attempt_timeout"], ["slow", 12, nil], ["later", 17, nil]])
    expect(timed_out).to be_complete
    expect(overdue.error).to include("code" => "task_deadline", "steps" => ["later"])
    expect(overdue["later"].error).to include("code" => "task_deadline")
    expect(waiting.error).to include("code" => "task_deadline", "steps" => [])
    expect([waiting["slow"].state, waiting["later"].state, waiting.elapsed]).to eq(["waiting_for_retry", "pending", 100])
  end

  it "says what to do about a Go handler" do
    template = { name: "a", step_templates: [{ name: "b", handler: "tasker.echo" }] }

    expect { run_task(template) }
      .to raise_error(TaskerCore::Testing::StubMissingError, /step "b" of default.a@0\.1\.0 has the Go handler tasker\.echo.*stub: { "b" =>/)
    expect { run_task(template, stub: { c: 1 }) }.to raise_error(TaskerCore::Testing::InputError, 'default/a@0.1.0 has no step "c"; it has b')
    expect(run_task(template, skip: ["b"])).to be_complete
  end

  it "reads a file, merged keys and anchors" do
    file = File.join(Dir.mktmpdir, "a.yaml")
    File.write(file, "name: a\nx: &base {handler_class: A}\nstep_templates: [{<<: *base, name: b, default_retry_limit: 1}]\n")
    expect { run_task(file) }.to raise_error(TaskerCore::Testing::TemplateError, /\A#{file}:2:1: unknown key "x"/)
    File.write(file, "name: a\nstep_templates: [&base {name: b, handler: x}, {<<: *base, name: c}]\n")

    expect(run_task(file, stub: { b: 1, c: 2 }).steps.transform_values(&:result)).to eq("b" => 1, "c" => 2)
  end

  {
    "a: [" => /\A\(YAML\):\d+:\d+: malformed YAML/,
    "name: a\nname: b\n" => /\A\(YAML\):2:1: "name" is given twice/,
    "name: a\nstep_templates: []\n" => /\A\(YAML\):2:1: a template needs a step/,
    "name: a\n---\nname: b\n" => /\A\(YAML\): a file holds one template, this one has 2/,
    "name: a\nstep_templates:\n- {name: b, handler: c, handler_class: D}\n" => /\A\(YAML\):3:3: step "b" must have a handler_class .* or a handler/,
    "name: a\nstep_templates:\n- {name: b, handler: c, depends_on_step: d}\n" =>
      /\A\(YAML\):3:3: step "b" depends on "d", and there is no such step; the steps are b/,
    "name: a\nstep_templates:\n- {name: b, handler: c, depends_on_step: d}\n- {name: d, handler: c, depends_on_step: b}\n- {name: e, handler: c}" =>
      /\A\(YAML\):2:1: steps depend on one another in a circle, among b, d/,
    "name: a\nstep_templates:\n- name: b\n  handler: c\n  default_retry_limit: many\n" =>
      /\A\(YAML\):5:3: default_retry_limit can't be "many"; wanted: Integer/,
    "name: a\nstep_templates:\n- name: b\n  handler: c\n  skippable: yes\n" => /\A\(YAML\):5:3: skippable must be true or false, not "yes"/,
    "name: a\nretry: {backoff: never}\nstep_templates:\n- {name: b, handler: c}\n" => /\A\(YAML\):2:9: unknown backoff "never"; there are none, fixed/,
    "name: a\nstep_templates:\n- {name: b, handler: c, handler_config: {x: \"${Y}\"}}\n" => /\A\(YAML\):3:45: \$\{Y\} has no value here/,
    "name: a\nstep_templates:\n- {name: b, handler: c, handler_config: !ruby/object:Object {}}\n" => /\A\(YAML\):3:41: the tag .* is not allowed/,
    "name: a\nstep_templates: [{name: b, handler: c}]\nenvironments: {test: {step_templates: [{name: x}]}}\n" =>
      /\A\(YAML\):3:40: the overlay changes step "x", and there is no such step/
  }.each do |yaml, message|
    it "refuses #{yaml.inspect}, with the place" do
      expect { run_task(yaml, stub: {}, environment: "test") }.to raise_error(TaskerCore::Testing::TemplateError, message)
    end
  end
end
