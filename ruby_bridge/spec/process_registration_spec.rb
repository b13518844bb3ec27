# frozen_string_literal: true

RSpec.describe TaskerCore::ProcessRegistration do
  subject(:registration) { described_class.new }

  before do
    use_test_database
    stub_const("#{described_class}::BEAT_SECONDS", 0.02)
  end

  after { registration.stop }

  def row(id) = TestDatabase.row("SELECT * FROM tasker.processes WHERE process_id = $1", id)

  def beaten_after(id, time) = eventually("process #{id} beats") { row(id)["last_seen_at"] > time }

  def backends = TestDatabase.gem_backends

  it "registers once, and says what it is" do
    id = registration.id
    details = JSON.parse(row(id)["details"])

    expect(registration.id).to eq(id)
    expect(row(id)["identity"]).to match(/\A.+:#{Process.pid}:\h+\z/)
    expect(details).to include("pid" => Process.pid, "tasker_core" => TaskerCore::VERSION, "sidekiq" => Sidekiq::VERSION)
  end

  it "beats" do
    id = registration.id

    beaten_after(id, row(id)["last_seen_at"])
  end

  it "gets one number for all threads" do
    expect(Array.new(8) { Thread.new { registration.id } }.map(&:value).uniq.size).to eq(1)
  end

  it "registers again when Postgres has given it up" do
    first = registration.id
    TestDatabase.connection.exec_params("UPDATE tasker.processes SET stopped_at = now() WHERE process_id = $1", [first])

    second = eventually("another number") { registration.id if registration.id != first }
    expect(row(second)["stopped_at"]).to be_nil
  end

  it "keeps its number when only the connection was lost" do
    id = registration.id
    before = backends
    TestDatabase.terminate_gem
    eventually("another connection") { (backends - before).any? }
    beaten_after(id, row(id)["last_seen_at"])

    expect(registration.id).to eq(id)
  end

  it "says once that it misses beats, and when it beats again" do
    id = registration.id
    TestDatabase.connection.exec("ALTER FUNCTION tasker.process_beat(bigint, jsonb, bigint) RENAME TO hidden_beat")
    eventually("a warning") { logged.include?("process #{id} misses its heartbeat") }
    TestDatabase.connection.exec("ALTER FUNCTION tasker.hidden_beat RENAME TO process_beat")
    eventually("good news") { logged.include?("process #{id} beats again") }

    expect(logged.scan("misses its heartbeat").size).to eq(1)
  end

  it "beats before anything starts, when it has missed beats" do
    stub_const("#{described_class}::BEAT_SECONDS", 60)
    id = registration.id
    registration.instance_variable_set(:@silent, true)
    long_ago = TestDatabase.value("UPDATE tasker.processes SET last_seen_at = now() - interval '1 hour' WHERE process_id = $1 RETURNING last_seen_at", id)

    expect(registration.id).to eq(id)
    expect(row(id)["last_seen_at"]).to be > long_ago
  end

  it "says when it stops" do
    others = backends
    id = registration.id
    own = backends - others
    registration.stop

    expect(row(id)["stopped_at"]).not_to be_nil
    expect(own.size).to eq(1)
    eventually("its connection is closed") { (backends & own).empty? }
  end
end
