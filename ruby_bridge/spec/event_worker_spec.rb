# frozen_string_literal: true

RSpec.describe TaskerCore::EventWorker do
  include EventHelpers

  before { use_test_database }

  let(:publisher) { TaskerCore::EventPublisher }
  let(:got) { Thread::Queue.new }

  def subscribe(*what, **options, &block)
    publisher.subscribe(*what, from: :beginning, **options, &block || ->(event) { got << event })
    publisher.start
  end

  def take_ids(count) = Array.new(count) { take(got).id }

  def fall_asleep(name)
    eventually("#{name} sleeps") { asleep?(name) }
    worker = TaskerCore.event_runner.instance_variable_get(:@workers).fetch(name)
    eventually("its looks are rare") { worker.instance_variable_get(:@idle) > described_class::PAUSES_SECONDS.size }
  end

  describe "waking" do
    it "is quicker than any look" do
      asleep = nil
      subscribe(name: "sleeper") do |event|
        asleep = PG.connect(TestDatabase.url) { |pg| pg.exec("SELECT FROM tasker.event_sleepers").ntuples }
        got << event
      end
      fall_asleep("sleeper")
      started = monotonic
      write_event("shop.sold")
      take(got)

      expect(monotonic - started).to be < 0.3 # looks are 2 s apart
      expect(asleep).to eq(0)
    end

    it "doesn't happen for what is not subscribed to" do
      subscribe("shop.sold", name: "deaf")
      fall_asleep("deaf")
      worker = TaskerCore.event_runner.instance_variable_get(:@workers).fetch("deaf")
      woken = Thread::Queue.new
      allow(worker).to(receive(:wake).and_wrap_original { |original| woken << 1 and original.call })
      write_event("shop.seen")
      write_event("shop.sold")
      take(got)

      expect(woken.size).to eq(1)
    end

    it "needs no commit with a NOTIFY while the subscriber is busy" do
      resume = Thread::Queue.new
      subscribe(name: "busy") do |event|
        got << event
        resume.pop
      end
      write_event("shop.sold")
      take(got)

      expect(asleep?("busy")).to be(false)
      resume << 1
      fall_asleep("busy")
    end

    it "happens by looking when the notification was lost" do
      subscribe(name: "unheard")
      fall_asleep("unheard")
      TestDatabase.connection.exec("DELETE FROM tasker.event_sleepers")
      write_event("shop.sold")

      expect(take(got, within: 5).name).to eq("shop.sold")
    end
  end

  describe "a handler that fails" do
    before { stub_const("#{described_class}::FIRST_RETRY_SECONDS", 0.01) }

    it "is tried again at the same event, which holds up what comes after, and nobody else" do
      tries = Hash.new(0)
      broken = true
      subscribe(name: "failing") do |event|
        tries[event.data["n"]] += 1
        raise "no mail server" if event.data["n"] == 2 && broken

        got << event
      end
      others = Thread::Queue.new
      subscribe(name: "other") { |event| others << event }
      (1..3).each { |n| write_event("shop.sold", data: { n: }) }
      eventually("it is tried often") { tries[2] > 5 }

      expect(take(got).data["n"]).to eq(1)
      expect(Array.new(3) { take(others).data["n"] }).to eq([1, 2, 3])
      eventually("people can see it") { lag_of("failing")["failed_event_id"] == "2" }
      expect(lag_of("failing")).to include("cursor" => "1", "behind" => "2", "failure" => "RuntimeError: no mail server")
      expect(logged).to include("subscriber failing failed at #<TaskerCore::Event 2 shop.sold> (try 1): no mail server (RuntimeError)")
      expect(tries).to eq(1 => 1, 2 => tries[2])
      broken = false
      expect(Array.new(2) { take(got).data["n"] }).to eq([2, 3])
      eventually("it stands no more") { lag_of("failing")["failed_event_id"].nil? }
    end

    it "lets the event go after some tries, when that is asked for" do
      tries = 0
      subscribe(name: "skipping", on_error: :skip, retries: 2) do |event|
        next got << event unless event.data["n"] == 1

        tries += 1
        raise NotImplementedError, "half done"
      end
      (1..2).each { |n| write_event("shop.sold", data: { n: }) }

      expect(take(got).data["n"]).to eq(2)
      expect(tries).to eq(3)
      expect(logged).to include("subscriber skipping skips #<TaskerCore::Event 1 shop.sold>, which failed 3 times")
    end

    it "begins again at that event after a restart" do
      subscribe(name: "restarted") { |event| event.id == 2 ? raise("broken") : got << event }
      3.times { write_event("shop.sold") }
      eventually("it stands") { lag_of("restarted")["failed_event_id"] }
      publisher.stop
      publisher.unsubscribe("restarted")
      subscribe(name: "restarted")

      expect(take_ids(3)).to eq([1, 2, 3])
    end
  end

  it "stops after the event that it is handling, and repeats nothing afterwards" do
    resume = Thread::Queue.new
    subscribe(name: "polite") do |event|
      got << event
      resume.pop if event.id == 2
    end
    4.times { write_event("shop.sold") }
    take_ids(2)
    stopping = Thread.new { publisher.stop }
    eventually("it is asked to stop") { TaskerCore.event_runner.nil? }
    resume << 1
    stopping.join
    expect(got).to be_empty
    expect(lag_of("polite")).to include("cursor" => "2", "holder" => nil)

    publisher.start
    expect(take_ids(2)).to eq([3, 4])
  end

  it "is kept for as long as a handler takes" do
    resume = Thread::Queue.new
    subscribe(name: "long") do |event|
      got << event
      resume.pop
    end
    write_event("shop.sold")
    take(got)
    held_until = -> { TestDatabase.value("SELECT held_until FROM tasker.event_subscribers") }
    before = held_until.call
    eventually("it is held for longer") { held_until.call > before }

    expect(TestDatabase.value("SELECT tasker.hold_subscriber('long', 'other')")).to eq("f")
    resume << 1
  end

  it "goes on where it was when its connection is lost" do
    subscribe(name: "cut")
    ids = Array.new(3) do
      write_event("shop.sold").tap do
        take(got)
        TestDatabase.terminate_gem
      end
    end
    last = write_event("shop.sold")

    expect(take(got).id).to be_between(ids.last, last)
  end

  it "drops the rest of its batch when another process has taken over" do
    subscribe(name: "slow") do |event|
      got << event
      if event.id == 1
        TestDatabase.connection.exec("UPDATE tasker.event_subscribers SET holder = 'other', held_until = now() + interval '1 minute'")
        worker = TaskerCore.event_runner.instance_variable_get(:@workers).fetch("slow")
        eventually("it is told") { !worker.holding? }
      end
    end
    TestDatabase.connection.transaction { |pg| 3.times { write_event("shop.sold", on: pg) } }
    eventually("it stands by") { logged.include?("subscriber slow is held by another process") }

    expect(take_ids(1)).to eq([1])
    expect(got).to be_empty
  end

  describe "in processes" do
    it "loses nothing when it is killed, and repeats no more than a batch" do
      write_events("shop.sold", 3000)
      first = EventsProcess.run(HANG_AFTER: "1500") do |process|
        process.wait_for(1500)
        process.kill
        process.ids
      end
      EventsProcess.run do |process|
        process.wait_for(3000 - 1000)
        eventually("all are acknowledged") { lag_of("counter")["behind"] == "0" }

        expect((first + process.ids).uniq.sort).to eq([*1..3000])
        expect(process.ids).to eq([*1001..3000])
      end
    end

    it "is taken over within seconds when its process is killed" do
      EventsProcess.run do |first|
        write_event("shop.sold")
        first.wait_for(1)
        EventsProcess.run do |second|
          eventually("both are there") { TestDatabase.gem_backends.size >= 3 }
          write_event("shop.sold")
          first.wait_for(2)
          first.kill
          killed = monotonic
          write_event("shop.sold")
          second.wait_for(1)

          expect(monotonic - killed).to be < 8
          expect([first.ids, second.ids]).to eq([[1, 2], [3]])
        end
      end
    end

    it "ends by TERM, hands over at once and repeats nothing" do
      EventsProcess.run do |first|
        write_events("shop.sold", 200)
        first.wait_for(200)
        first.term
        expect(first.lines.last).to eq("stopped")
        EventsProcess.run do |second|
          id = write_event("shop.sold")
          second.wait_for(1)
          expect(second.ids).to eq([id])
        end
      end
    end
  end

  it "doesn't run on in the child of a fork, and leaves the parent's connection alone" do
    script = <<~RUBY
      seen = Queue.new
      TaskerCore::EventPublisher.subscribe(name: "forking", from: :beginning) { |event| seen << event.id }
      TaskerCore::EventPublisher.start
      seen.pop
      Process.wait(fork { print [TaskerCore.event_runner.nil?, TaskerCore::EventPublisher.subscriptions.size].inspect })
      TaskerCore::EventPublisher.publish("shop.sold")
      print seen.pop
    RUBY
    write_event("shop.sold")
    output, status = Open3.capture2({ "TASKER_DATABASE_URL" => TestDatabase.url, "RUBYLIB" => SidekiqProcess::LIB },
                                    RbConfig.ruby, "-rtasker_core", "-e", script)

    expect([output, status.success?]).to eq(["[true, 1]2", true])
  end
end
