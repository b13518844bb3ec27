# frozen_string_literal: true

require "bigdecimal"
require "tasker_core/testing/rspec"

RSpec.describe "TaskerCore::Testing.run_step" do
  def handler(&) = Class.new(TaskerCore::BaseStepHandler) { define_method(:process, &) }

  def run_step(**options, &) = TaskerCore::Testing.run_step(handler(&), **options)

  it "gives a handler what it would be given, and returns what would be stored" do
    outcome = run_step(context: { order_id: 5 }, dependencies: { reserve: { price: BigDecimal("1.50") } }, config: { mode: :fast },
                       attempt: 2, progress: { rows: 7 }, steps: { other: [1] }, step: "charge", task: { tags: ["a"] }) do |task, sequence, step|
      { order: task["order_id"], price: sequence.results_of("reserve")["price"], config: step.config, rows: step.progress["rows"],
        other: sequence.results_of(:other), none: sequence.step?("none"), state: sequence.dependencies["reserve"].state,
        step: step.name, last: step.last_attempt?, tags: task.tags, frozen: task.context.frozen? && step.config.frozen?, at: Time.at(0) }
    end

    expect(outcome).to be_step_success.with(
      "order" => 5, "price" => "1.5", "config" => { "mode" => "fast" }, "rows" => 7, "other" => [1], "none" => false, "state" => "complete",
      "step" => "charge", "last" => false, "tags" => ["a"], "frozen" => true, "at" => "1970-01-01T00:00:00.000000Z"
    )
    expect([outcome.result, outcome.heartbeats, outcome]).to all(be_frozen)
  end

  it "runs process_results too, and finds a handler by its name or takes one that was made" do
    stub_const("Orders::Ship", Class.new(TaskerCore::BaseStepHandler) do
      def initialize(carrier = "post")
        super()
        @carrier = carrier
      end

      def process(*) = @carrier
      def process_results(_step, output, _before) = { by: output }
    end)

    expect(TaskerCore::Testing.run_step("Orders::Ship")).to be_step_success.with("by" => "post")
    expect(TaskerCore::Testing.run_step(Orders::Ship.new("ups"))).to be_step_success.with("by" => "ups")
    expect(TaskerCore::Testing.run_step("Orders::Nothing")).to be_step_failure.with_code("handler_not_found").and be_permanent
  end

  it "keeps a failure as it would be stored" do
    outcome = run_step(attempt: 2) { |*| raise TaskerCore::RetryableError.new("busy", retry_after: 30, context: { gate: :a }) }

    expect(outcome).to be_step_failure.with_message("busy").and be_retryable.after(30)
    expect(outcome.error).to include("class" => "TaskerCore::RetryableError", "retry_after" => 30, "context" => { "gate" => "a" }, "attempt" => 2)
    expect(outcome.error).not_to have_key("permanent")
    expect(outcome.exception).to be_a(TaskerCore::RetryableError)
    expect(outcome.result).to be_nil
  end

  it "reads the wish of a Retry-After header" do
    date = run_step { |*| raise TaskerCore::RetryableError.new(retry_after: (Time.now + 60).httpdate) }
    text = run_step { |*| raise TaskerCore::RetryableError.new(retry_after: " 1.5 ") }
    other = run_step { |*| raise TaskerCore::RetryableError.new(retry_after: "soon") }

    expect([date.retry_after.between?(50, 60), text.retry_after, other.retry_after]).to eq([true, 1.5, nil])
  end

  it "fails for good on what is permanent, and on results that are not JSON" do
    expect(run_step { |*| raise TaskerCore::PermanentError.new("no", error_code: :card_declined) })
      .to be_step_failure.with_code(:card_declined).and be_permanent
    expect(run_step { |*| { price: Float::NAN } }).to be_step_failure.with_code("result_not_serializable").with_message("$.price is NaN")
    expect(run_step { |*| exit }).to be_step_failure.with_message("exit").and be_retryable
  end

  it "lets assertions through that fail in a handler" do
    expect { run_step { |*| RSpec::Expectations.fail_with("wrong") } }.to raise_error(RSpec::Expectations::ExpectationNotMetError)
  end

  it "gives the step its inputs too" do
    outcome = run_step(context: { order_id: 5 }, dependencies: { reserve: { price: 10 } }) do |_, _, step|
      [step.inputs["order_id"], step.results_of(:reserve)["price"], step.dependencies.keys]
    end

    expect(outcome).to be_step_success.with([5, 10, ["reserve"]])
  end

  it "has a task that is known to carry no values of CurrentAttributes, so that nobody asks Postgres" do
    require "active_support/current_attributes"
    stub_const("Current", Class.new(ActiveSupport::CurrentAttributes) { attribute :locale })
    TaskerCore.configure do |config|
      config.current_attributes = ["Current"]
      config.database_url = "postgres://127.0.0.1:1/nowhere"
      config.headers_keys = ["k" * 32]
    end
    surrounded = ->(task, step) { TaskerCore.config.surroundings.call(task, step) { [Current.locale] } }
    handler = handler { |task, _, step| surrounded.call(task, step) }
    template = { name: "t", step_templates: [{ name: "only", handler_class: "Orders::Surrounded" }] }
    stub_const("Orders::Surrounded", handler)

    expect(TaskerCore::Testing.run_step(handler)).to be_step_success.with([nil])
    expect(TaskerCore::Testing.run_task(template)).to be_complete
    task = { namespace: "spec", name: "t" }
    carried = Current.set(locale: "de") { JSON.parse(TaskerCore::TaskCarrier.to_json(*task.values)) }
    expect(TaskerCore::Testing.run_step(handler, task: { **task, carrier: carried })).to be_step_success.with(["de"])
  end

  it "refuses inputs that are not JSON, with the place" do
    expect { run_step(context: { a: { b: Object } }) { nil } }.to raise_error(TaskerCore::Testing::InputError, /\Athe context is not JSON: \$\.a\.b is a Class/)
    expect { run_step(dependencies: { a: Float::INFINITY }) { nil } }
      .to raise_error(TaskerCore::Testing::InputError, /\Awhat is given as dependencies is not JSON: \$\.a /)
  end

  it "refuses to change what a handler was given" do
    expect(run_step(context: { list: [1] }) { |task, *| task["list"] << 2 }).to be_step_failure.with_message(/can't modify frozen Array/)
  end

  describe "heartbeats" do
    it "keeps them, and the progress that the next attempt finds" do
      outcome = run_step(progress: 1) do |_, _, step|
        [{ rows: 2 }, nil].each { |progress| step.heartbeat!(progress) }
        raise "broken"
      end

      expect([outcome.heartbeats, outcome.progress]).to eq([[{ "rows" => 2 }, nil], { "rows" => 2 }])
      expect(run_step(progress: 1) { nil }.progress).to eq(1)
      expect(run_step { |_, _, step| step.heartbeat!("x" * 70_000) }).to be_step_failure.with_message("at most 65536 are kept")
    end

    it "fails an attempt whose time is up, by the test's clock" do
      late = run_step(timeout: 60) { |*| TaskerCore::Testing.travel(61) }
      silent = run_step(timeout: 60, heartbeat: 10) do |_, _, step|
        2.times { TaskerCore::Testing.travel(9) && step.heartbeat! }
        TaskerCore::Testing.travel(11)
        step.cancelled? ? step.heartbeat! : raise("still on")
      end

      expect(late).to be_step_failure.with_code("attempt_timeout").and be_retryable
      expect(silent).to be_step_failure.with_code("heartbeat_timeout")
      expect(silent.exception).to be_a(TaskerCore::AttemptOverError)
      expect(run_step(timeout: 60) { |*| TaskerCore::Testing.travel(60) }).to be_step_success
    end
  end

  it "rolls back what a transactional handler wrote when it fails" do
    require "active_record"
    ActiveRecord::Base.establish_connection(TestDatabase.url)
    ActiveRecord::Base.connection.execute("CREATE TEMPORARY TABLE writes (n int)")
    booking = lambda do |fails|
      Class.new(TaskerCore::BaseStepHandler) do
        transactional
        define_method(:process) do |*|
          ActiveRecord::Base.connection.execute("INSERT INTO writes VALUES (1)")
          raise "broken" if fails
        end
      end
    end

    expect(TaskerCore::Testing.run_step(booking.call(true))).to be_step_failure
    expect(TaskerCore::Testing.run_step(booking.call(false))).to be_step_success
    expect(ActiveRecord::Base.connection.select_value("SELECT count(*) FROM writes")).to eq(1)
  ensure
    ActiveRecord::Base.remove_connection
  end

  # The round trip is that of Postgres.
  it "returns results as jsonb would" do
    values = [1, -0.0, 0.1, 1e15, 1e16, 1.5e22, -1e100, 1e-7, 12_345_678_901_234_567.0, 2**80, [], {}, "ü\n", nil,
              { "bb" => 1, "a" => 2, "ä" => 3, "ab" => [nil, true, "x"] }]
    dice = Random.new(1)
    values += Array.new(300) { dice.rand * (10.0**dice.rand(-30..30)) }
    stored = values.map { |value| TestDatabase.value("SELECT $1::jsonb", JSON.generate(value)).then { |text| JSON.parse(text) } }

    values.zip(stored) do |value, wanted|
      got = run_step { |*| value }.result
      expect([value, got, got.class, got.is_a?(Hash) && got.keys]).to eq([value, wanted, wanted.class, wanted.is_a?(Hash) && wanted.keys])
    end
  end
end
