# frozen_string_literal: true

RSpec.describe TaskerCore::Patience do
  let(:logger) { Logger.new(log) }

  def patience(seconds) = described_class.new(seconds:, activity: "report step 7", logger:)

  def lost = TaskerCore::DatabaseError.new("connection refused")

  it "returns what the call returns, at once" do
    expect(patience(0).persist { |repeated| [repeated, 1] }).to eq([false, 1])
    expect(logged).to be_empty
  end

  it "repeats the call while the failure may pass, and says so" do
    failures = [lost]

    expect(patience(5).persist { failures.empty? ? :done : raise(failures.pop) }).to eq(:done)
    expect(logged).to include("cannot report step 7 yet: connection refused")
  end

  it "tells the call when an earlier one may have been carried out" do
    failures = [TaskerCore::DatabaseError.new("gone", answered: false)]

    expect(patience(5).persist { |repeated| failures.empty? ? repeated : raise(failures.pop) }).to be(true)
  end

  it "gives up when the time is over" do
    expect { patience(0).persist { raise lost } }.to raise_error(TaskerCore::DatabaseError, "connection refused")
  end

  it "doesn't repeat what Postgres will never take" do
    calls = 0

    expect do
      patience(60).persist do
        calls += 1
        raise TaskerCore::DatabaseError.new("numeric out of range", sqlstate: "22003")
      end
    end.to raise_error(/numeric/)
    expect(calls).to eq(1)
  end

  it "lets a shutdown through while it waits" do
    thread = Thread.new do
      Thread.handle_interrupt(Sidekiq::Shutdown => :never) { patience(60).persist { raise lost } }
    end
    thread.report_on_exception = false
    eventually("it waits") { thread.status == "sleep" && logged != "" }
    thread.raise(Sidekiq::Shutdown)

    expect { thread.join }.to raise_error(Sidekiq::Shutdown)
  end
end
