# frozen_string_literal: true

RSpec.describe TaskerCore::TaskEnds do
  before { use_test_database(pool_size: 5) }

  let(:ends) { TaskerCore.task_ends }
  let(:template) { register_template([{ position: 0, name: "work", handler: "tasker.echo", attempt_limit: 1 }]) }

  def new_task = insert_task(template, {})

  def cancel(task_id) = TestDatabase.value("SELECT tasker.cancel_task($1)", task_id)

  def clock = Process.clock_gettime(Process::CLOCK_MONOTONIC)

  # Entered, and with its first looks behind it: from now on only a notification is quick.
  def asleep(task_id, timeout: nil)
    thread = Thread.new { ends.wait(task_id, timeout:) && clock }
    thread.report_on_exception = false
    eventually("the wait sleeps") { (waiter(task_id)&.pause || 0) >= described_class::LONGEST_PAUSE_SECONDS && !thread.stop?.nil? && thread.stop? }
    thread
  end

  def waiter(task_id) = ends.instance_variable_get(:@waiters).each_key.find { |waiter| waiter.task_id == task_id }

  def rows(tasks) = TestDatabase.value("SELECT count(*) FROM tasker.task_waiters WHERE task_id = ANY ($1)", "{#{tasks.join(',')}}").to_i

  it "says at once that a task has ended" do
    task_id = new_task
    cancel(task_id)

    expect(ends.wait(task_id, timeout: 0)).to be(true)
  end

  it "gives up when the time is up" do
    task_id = new_task

    expect(ends.wait(task_id, timeout: 0)).to be(false)
    expect(ends.wait(task_id, timeout: 0.05)).to be(false)
  end

  it "is woken by the end of the task, quicker than by any look" do
    task_id = new_task
    thread = asleep(task_id)
    ended_at = clock
    cancel(task_id)

    expect(thread.value - ended_at).to be < 0.3 # looks are 2 s apart
  end

  %w[error complete resolved_manually].each do |state|
    it "takes #{state} for an end" do
      task_id = new_task
      thread = asleep(task_id)
      TestDatabase.connection.transaction do |pg|
        path = { "error" => %w[error], "complete" => %w[in_progress complete], "resolved_manually" => %w[error resolved_manually] }.fetch(state)
        path.each { |becomes| pg.exec_params("UPDATE tasker.tasks SET state = $2 WHERE task_id = $1", [task_id, becomes]) }
        event = { "error" => "task.failed", "complete" => "task.completed" }.fetch(state, "task.#{state}")
        pg.exec_params("INSERT INTO tasker.events (task_id, name) VALUES ($1, $2)", [task_id, event])
      end

      expect(thread.join(1.5)).to be(thread)
      expect(ends.wait(task_id, timeout: 0)).to be(true)
    end
  end

  it "isn't woken by other events of the task, nor by other tasks" do
    task_id = new_task
    other = new_task
    thread = asleep(task_id)
    heard = Thread::Queue.new
    allow(ends).to(receive(:heard).and_wrap_original { |original, text| heard << text and original.call(text) })
    TestDatabase.connection.exec_params("INSERT INTO tasker.events (task_id, name) VALUES ($1, 'task.paused')", [task_id])
    cancel(other)
    cancel(task_id)
    thread.join

    expect(Array.new(heard.size) { heard.pop }).to eq([task_id.to_s])
  end

  it "sees an end whose transaction had rung before anybody waited" do
    task_id = new_task
    PG.connect(TestDatabase.url) do |writer|
      writer.exec("BEGIN")
      writer.exec_params("SELECT tasker.cancel_task($1)", [task_id])
      thread = Thread.new { ends.wait(task_id) && clock }
      eventually("it waits") { rows([task_id]) == 1 && waiter(task_id) }
      writer.exec("COMMIT")

      expect(thread.value).to be_a(Float)
    end
  end

  it "lets many threads wait on one connection" do
    before = TestDatabase.gem_backends
    tasks = Array.new(30) { new_task }
    threads = tasks.map { |task_id| Thread.new { ends.wait(task_id, timeout: 20) } }
    eventually("all wait") { rows(tasks) == 30 }
    listening = TestDatabase.value("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%' " \
                                   "OR application_name = 'tasker_core' AND NOT pid::text = ANY ($1)", "{#{before.join(',')}}").to_i
    tasks.each { |task_id| cancel(task_id) }

    expect(threads.map(&:value)).to all(be(true))
    expect(listening).to be <= TaskerCore.config.pool_size + 1
  end

  it "goes on after its connection was lost, also when the task ends meanwhile" do
    task_id = new_task
    thread = asleep(task_id)
    TestDatabase.terminate_gem
    cancel(task_id)

    expect(thread.join(10)).to be(thread)
  end

  it "says that there is no such task" do
    expect { ends.wait(999_999_999, timeout: 1) }.to raise_error(TaskerCore::DatabaseError, /there is no task 999999999 – .*committed/)
  end

  it "is left by an exception from outside" do
    thread = asleep(new_task)
    thread.raise(Interrupt)

    expect { thread.join }.to raise_error(Interrupt)
    expect(ends.instance_variable_get(:@waiters)).to be_empty
  end

  it "keeps entries while somebody waits, strikes off those that are done, and those of dead processes" do
    TestDatabase.connection.exec("INSERT INTO tasker.task_waiters VALUES (1, 'dead', now() - interval '1 second')")
    protocol = TaskerCore::EventProtocol.new(TaskerCore.database)
    gone = new_task
    kept = new_task
    [gone, kept].each { |task_id| protocol.await_task(task_id, "mine") }
    TestDatabase.connection.exec("UPDATE tasker.task_waiters SET until = until - interval '20 seconds' WHERE channel = 'mine'")

    expect(protocol.renew_waiters("mine", [kept])).to be(true)
    expect(TestDatabase.connection.exec("SELECT task_id FROM tasker.task_waiters WHERE channel IN ('mine', 'dead')").column_values(0)).to eq([kept.to_s])
    expect(TestDatabase.value("SELECT until > now() + interval '50 seconds' FROM tasker.task_waiters WHERE channel = 'mine'")).to eq("t")
    TestDatabase.connection.exec("UPDATE tasker.task_waiters SET until = until - interval '20 seconds'")
    expect(protocol.renew_waiters("mine", [])).to be(false)
  end

  it "waits in the child of a fork, and in its parent" do
    script = <<~RUBY
      require "json"
      task_id, other = ARGV.map(&:to_i)
      waits = Thread.new { TaskerCore.task_ends.wait(task_id, timeout: 20) }
      # It listens and it waits: no thread connects while this one forks, as OpenSSL's locks would stay locked in the child.
      listens = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND (query LIKE 'LISTEN%' OR query LIKE '%renew_waiters(%')"
      sleep 0.01 until TaskerCore.database.exec("SELECT FROM tasker.task_waiters WHERE EXISTS (\#{listens})").ntuples.positive?
      reader, writer = IO.pipe
      child = fork { writer.puts(TaskerCore.task_ends.wait(other, timeout: 20)) }
      writer.close
      print [waits.value, reader.read.strip].to_json
      Process.wait(child)
    RUBY
    tasks = [new_task, new_task]
    reader, writer = IO.pipe
    pid = spawn({ "TASKER_DATABASE_URL" => TestDatabase.url, "RUBYLIB" => SidekiqProcess::LIB },
                RbConfig.ruby, "-rtasker_core", "-e", script, *tasks.map(&:to_s), out: writer)
    writer.close
    eventually("both wait") { rows(tasks) == 2 }
    tasks.each { |task_id| cancel(task_id) }

    expect(reader.read).to eq('[true,"true"]')
  ensure
    Process.wait(pid) if pid
  end

  after { TestDatabase.connection.exec("DELETE FROM tasker.task_waiters") }
end
