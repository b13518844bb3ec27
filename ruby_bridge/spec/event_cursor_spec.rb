# frozen_string_literal: true

RSpec.describe "The cursor of a subscriber of events" do
  include EventHelpers

  def subscribe(name, patterns = ["*"], start: "beginning")
    TestDatabase.value("SELECT tasker.subscribe($1, $2, $3)", name, PG::TextEncoder::Array.new.encode(patterns), start)
    EventReader.new(name)
  end

  def awaited(name) = lag_of(name)["awaited"].to_i

  it "loses no event whose id is smaller and whose transaction commits later" do
    reader = subscribe("late")
    open_transaction do |slow|
      first = write_event("shop.slow", on: slow)
      second = write_event("shop.quick")
      expect(reader.read).to eq([second])
      expect(reader.read).to eq([])
      slow.exec("COMMIT")

      expect(reader.read).to eq([first])
      expect(reader.read).to eq([])
    end
  end

  it "is not held up by a transaction that stays open, and keeps a place for its events alone" do
    reader = subscribe("open")
    open_transaction do |slow|
      first = write_event("shop.slow", on: slow)
      ids = Array.new(30) { write_event("shop.quick") }

      expect(Array.new(3) { reader.read(10) }.flatten).to eq(ids)
      expect(awaited("open")).to eq(1)
      slow.exec("COMMIT")
      expect(reader.read).to eq([first])
    end
    expect(reader.read).to eq([])
    expect(awaited("open")).to eq(0)
  end

  it "gives up ids that were rolled back, once everybody who was writing has ended" do
    reader = subscribe("back")
    open_transaction do |other|
      write_event("shop.slow", on: other)
      open_transaction do |failing|
        5.times { write_event("shop.failing", on: failing) }
        write_event("shop.quick")
        reader.read
        failing.exec("ROLLBACK")
      end
      2.times { reader.read }
      expect(awaited("back")).to eq(6) # whose they are, nobody knows
      other.exec("COMMIT")
      expect(reader.read.size).to eq(1)
    end
    expect(awaited("back")).to eq(0)
  end

  it "keeps the order of what follows from one another" do
    reader = subscribe("order")
    open_transaction do |slow|
      first = write_event("shop.slow", on: slow)
      write_event("shop.quick")
      reader.read
      slow.exec("COMMIT")
      following = write_event("shop.following")

      expect(reader.read(1)).to eq([first])
      expect(reader.read(1)).to eq([following])
    end
  end

  it "gives the same batch again until it is acknowledged, as far as it is acknowledged" do
    reader = subscribe("again")
    ids = Array.new(4) { write_event("shop.done") }

    expect(Array.new(2) { reader.read(acknowledge: false) }).to eq([ids, ids])
    reader.acknowledge(ids[1])
    expect(reader.read(acknowledge: false)).to eq(ids.last(2))
    reader.acknowledge(nil)
    expect(reader.read).to eq([])
  end

  it "acknowledges a part of a batch that begins with events that came late" do
    reader = subscribe("part")
    open_transaction do |slow|
      late = Array.new(3) { write_event("shop.slow", on: slow) }
      write_event("shop.quick")
      reader.read
      slow.exec("COMMIT")
      after = write_event("shop.quick")

      expect(reader.read(acknowledge: false)).to eq([*late, after])
      reader.acknowledge(late[1])
      expect(reader.read(acknowledge: false)).to eq([late[2], after])
      reader.acknowledge(late[2])
      expect(reader.read).to eq([after])
      2.times { reader.read }
      expect(awaited("part")).to eq(0)
    end
  end

  it "filters, and passes over what is not wanted in large steps" do
    reader = subscribe("few", ["shop.sold", "stock.*", "a_b"])
    write_events("shop.seen", 3000)
    wanted = ["shop.sold", "stock.low", "stock.low.again", "a_b"].map { |name| write_event(name) }
    %w[shop.sold.not stocks.low axb].each { |name| write_event(name) }

    expect(Array.new(4) { reader.read(100) }).to eq([[], [], [], wanted])
    expect(lag_of("few")).to include("behind" => "0", "lag" => nil)
  end

  it "begins with what is new, unless asked" do
    write_event("shop.old")
    reader = subscribe("new", start: "now")
    id = write_event("shop.new")

    expect(reader.read).to eq([id])
  end

  it "takes other patterns and keeps its place" do
    reader = subscribe("changing", ["shop.sold"])
    write_event("shop.sold")
    reader.read
    subscribe("changing", ["shop.*"])
    id = write_event("shop.seen")

    expect(reader.read).to eq([id])
  end

  it "lets one process read at a time, refuses the other's acknowledgement, and another take over after 5 seconds" do
    reader = subscribe("one")
    other = EventReader.new("one", holder: "other")
    id = write_event("shop.sold")

    expect(reader.read(acknowledge: false)).to eq([id])
    expect(other.read).to be_nil
    TestDatabase.connection.exec("UPDATE tasker.event_subscribers SET held_until = held_until - interval '5 seconds'")
    expect(other.read).to eq([id])
    expect(reader.acknowledge(nil)).to be(false)
    expect(reader.read).to be_nil
  end

  it "refuses what would make it lose events, and what makes no sense, in words" do
    subscribe("words")
    {
      "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT * FROM tasker.next_events('words', 'me')" => /read committed/,
      "SELECT * FROM tasker.next_events('nobody', 'me')" => /there is no subscriber "nobody"/,
      "SELECT tasker.subscribe('x', '{Task.Done}')" => /not "Task.Done"/,
      "SELECT tasker.subscribe('x', '{}')" => /not none at all/,
      "SELECT tasker.subscribe('', '{*}')" => /name of a subscriber/,
      "SELECT tasker.subscribe('x', '{*}', 'yesterday')" => /now or beginning, not at yesterday/,
      "SELECT tasker.publish_event('task.done')" => /are the engine's/,
      "SELECT tasker.publish_event('done')" => /is like order.fulfilled/,
      "SELECT tasker.publish_event('shop.done', '[]')" => /JSON object/,
      "SELECT tasker.publish_event('shop.done', '{}', 999999999)" => /no task 999999999/,
      "SELECT tasker.publish_event('shop.done', '{}', NULL, 999999999)" => /no step 999999999/
    }.each do |sql, words|
      PG.connect(TestDatabase.url) { |connection| expect { connection.exec(sql) }.to raise_error(PG::Error, words) }
    end
  end

  # Writers that commit in any order, or not at all, against readers of all kinds.
  it "delivers each committed event once, whatever the writers do" do
    written = Thread::Queue.new
    readers = { "all" => ["*"], "some" => ["shop.a"] }.to_h { |name, patterns| [name, subscribe(name, patterns)] }
    writers = Array.new(6) { |number| Thread.new { write_wildly(Random.new(number), written) } }
    got = Hash.new { |hash, name| hash[name] = [] }
    random = Random.new(42)
    finished = false
    until finished
      finished = writers.none?(&:alive?)
      readers.each { |name, reader| got[name].concat(reader.read(random.rand(1..40))) }
    end
    readers.each { |name, reader| got[name].concat(reader.read(1_000)) while lag_of(name).values_at("behind", "awaited") != %w[0 0] }
    committed = Array.new(written.size) { written.pop }

    expect(committed.size).to be > 300
    expect(got["all"].sort).to eq(committed.map(&:first).sort)
    expect(got["some"].sort).to eq(committed.filter_map { |id, name| id if name == "shop.a" }.sort)
    expect(committed.group_by(&:last).size).to eq(2)
  end

  def write_wildly(random, written)
    PG.connect(TestDatabase.url) do |connection|
      60.times do
        connection.exec("BEGIN")
        ids = Array.new(random.rand(1..5)) do
          sleep random.rand(0.003) # so that ids of several transactions mingle
          name = "shop.#{%w[a b].sample(random:)}"
          [write_event(name, on: connection), name]
        end
        commits = random.rand < 0.8
        connection.exec(commits ? "COMMIT" : "ROLLBACK")
        ids.each { |id| written << id } if commits
      end
    end
  end
end
