# frozen_string_literal: true

require "active_record"

RSpec.describe "A transactional handler" do
  before do
    use_test_database
    ActiveRecord::Base.establish_connection(TestDatabase.url)
    # ActiveRecord rolls a failed commit back, which Postgres finds worth a warning.
    ActiveRecord::Base.connection.raw_connection.set_notice_processor { |_message| nil }
    TestDatabase.connection.exec("CREATE TABLE bookings (step_id bigint, amount int CHECK (amount > 0) NOT NULL)")
  end

  after do
    ActiveRecord::Base.remove_connection
    TestDatabase.connection.exec("DROP TABLE bookings")
  end

  # A step whose handler books, then does what the block says.
  def booking(amount: 1, &after)
    stub_const("Book", Class.new(TaskerCore::BaseStepHandler) do
      transactional

      define_method(:process) do |_task, _sequence, step|
        ActiveRecord::Base.connection.execute("INSERT INTO bookings VALUES (#{step.step_id}, #{amount})")
        after ? after.call(step) : "booked"
      end
    end)
    dispatch("Book")
  end

  def bookings = TestDatabase.value("SELECT count(*) FROM bookings").to_i

  def performed(step)
    perform(step)
    nil
  rescue StandardError => e
    e
  end

  it "commits its writes and its result together" do
    step = booking { |current| [TestDatabase.value("SELECT state FROM tasker.steps WHERE step_id = $1", current.step_id), bookings] }
    perform(step)

    expect(step.result).to eq(["in_progress", 0]) # as others saw it until then
    expect([step.state, bookings]).to eq(["complete", 1])
    written = TestDatabase.value("SELECT (SELECT xmin FROM bookings) = xmin FROM tasker.steps WHERE step_id = $1", step.step_id)
    expect(written).to eq("t")
  end

  it "leaves nothing of its writes when it fails" do
    step = booking { raise IOError, "printer" }

    expect(performed(step)).to be_a(IOError)
    expect([step.failure["class"], bookings]).to eq(["IOError", 0])
  end

  it "leaves nothing of its writes when its result is refused" do
    step = booking { |current| TestDatabase.value("UPDATE tasker.steps SET attempts = 2 WHERE step_id = $1 RETURNING 1", current.step_id) }
    perform(step)

    expect([step.state, step.failure, bookings]).to eq(["in_progress", nil, 0])
    expect(logged).to include("its transaction is rolled back: step #{step.step_id} (work) is at attempt 2, not 1")
  end

  it "leaves nothing of its writes when its result is not JSON" do
    step = booking { Float::NAN }
    performed(step)

    expect([step.failure["code"], bookings]).to eq(["result_not_serializable", 0])
  end

  it "leaves nothing of its writes when it is thrown out" do
    step = booking { throw :out }

    expect { catch(:out) { perform(step) } }.to raise_error(TaskerCore::Error, /left its transaction by throw/)
    expect([step.failure["class"], bookings]).to eq(["TaskerCore::Error", 0])
  end

  it "leaves nothing of its writes when Sidekiq shuts down" do
    running = Queue.new
    step = booking do
      running << true
      Thread.stop
    end
    thread = Thread.new { perform(step) }
    thread.report_on_exception = false
    running.pop
    thread.raise(Sidekiq::Shutdown)

    expect { thread.join }.to raise_error(Sidekiq::Shutdown)
    expect([step.failure, bookings]).to eq([{ "lost" => true }, 0])
  end

  it "fails when the commit does" do
    TestDatabase.connection.exec("ALTER TABLE bookings ADD CONSTRAINT once UNIQUE (amount) DEFERRABLE INITIALLY DEFERRED")
    TestDatabase.connection.exec("INSERT INTO bookings VALUES (0, 1)")
    step = booking

    expect(performed(step)).to be_a(ActiveRecord::RecordNotUnique)
    expect([step.state, step.failure["class"], bookings]).to eq(["in_progress", "ActiveRecord::RecordNotUnique", 1])
  end

  # Sidekiq without Rails, and several attempts in one job: nobody else takes the
  # connection from the thread.
  it "finds its connection whole again after it broke between two attempts" do
    perform(booking)
    TestDatabase.value("SELECT pg_terminate_backend($1)", ActiveRecord::Base.connection.select_value("SELECT pg_backend_pid()"))
    broken = booking
    expect(performed(broken)).to be_a(ActiveRecord::ActiveRecordError)

    whole = booking
    perform(whole)
    expect([broken.failure["class"], whole.state, bookings]).to match([/\AActiveRecord::/, "complete", 2])
  end

  it "hands the trait on to its subclasses, and to nobody else" do
    booking

    expect(Class.new(Book)).to be_transactional
    expect(Class.new(TaskerCore::BaseStepHandler)).not_to be_transactional
    expect(TaskerCore::BaseStepHandler).not_to be_transactional
  end
end
