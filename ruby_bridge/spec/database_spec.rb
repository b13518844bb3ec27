# frozen_string_literal: true

RSpec.describe TaskerCore::Database do
  before { use_test_database(pool_size: 2) }

  let(:database) { TaskerCore.database }

  def backend(database = self.database) = database.exec("SELECT pg_backend_pid()").getvalue(0, 0)

  def terminate(pid)
    expect(TestDatabase.value("SELECT pg_terminate_backend($1)", pid)).to eq("t")
    eventually("backend #{pid} is gone") { TestDatabase.value("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", pid) == "0" }
  end

  it "keeps its connection" do
    expect(backend).to eq(backend)
  end

  it "has Postgres keep its statements" do
    3.times { |i| expect(database.exec("SELECT $1::int + 1", [i]).getvalue(0, 0)).to eq((i + 1).to_s) }

    kept = "SELECT name, generic_plans + custom_plans AS times FROM pg_prepared_statements WHERE statement = 'SELECT $1::int + 1'"
    expect(database.exec(kept).to_a).to match([{ "name" => /\Atasker_\h{40}\z/, "times" => "3" }])
  end

  it "does without, where a pooler has given the session to others" do
    expect(database.exec("SELECT $1::int", [1]).getvalue(0, 0)).to eq("1")
    before = backend
    database.exec("DEALLOCATE ALL")

    expect(database.exec("SELECT $1::int", [2]).getvalue(0, 0)).to eq("2")
    expect(database.exec("SELECT count(*) FROM pg_prepared_statements").getvalue(0, 0)).to eq("0")
    expect(backend).to eq(before)
  end

  it "does without, when a migration has changed what a statement returns" do
    TestDatabase.connection.exec("CREATE OR REPLACE VIEW public.changing AS SELECT 1 AS a")
    expect(database.exec("SELECT * FROM public.changing").fields).to eq(["a"])
    TestDatabase.connection.exec("CREATE OR REPLACE VIEW public.changing AS SELECT 1 AS a, 2 AS b")

    expect(database.exec("SELECT * FROM public.changing").fields).to eq(%w[a b])
  ensure
    TestDatabase.connection.exec("DROP VIEW public.changing")
  end

  it "tells Postgres who it is" do
    expect(database.exec("SHOW application_name").getvalue(0, 0)).to eq("tasker_core")
  end

  it "has the settings that the engine relies on, however the database is configured" do
    name = TestDatabase.value("SELECT current_database()")
    hostile = { "default_transaction_isolation" => "serializable", "standard_conforming_strings" => "off", "search_path" => "public",
                "client_encoding" => "LATIN1" }
    hostile.each { |setting, value| TestDatabase.connection.exec("ALTER DATABASE #{name} SET #{setting} = #{value}") }
    expect(hostile.keys.map { |setting| described_class.new.exec("SHOW #{setting}").getvalue(0, 0) })
      .to eq(["read committed", "on", "pg_catalog, pg_temp", "UTF8"])
  ensure
    hostile.each_key { |setting| TestDatabase.connection.exec("ALTER DATABASE #{name} RESET #{setting}") }
  end

  it "does without settings behind a pooler that takes none" do
    allow(PG).to receive(:connect).and_wrap_original do |connect, **parameters|
      raise PG::ConnectionBad, "FATAL:  unsupported startup parameter: options" if parameters[:options]

      connect.call(**parameters)
    end
    expect(described_class.new.exec("SELECT 1").getvalue(0, 0)).to eq("1")
  end

  it "opens a new connection when the old one has ended between two calls" do
    before = backend
    terminate(before)

    expect(backend).not_to eq(before)
  end

  it "says that it doesn't know, when the connection breaks under a call" do
    expect { database.exec("SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(10)") }
      .to raise_error(TaskerCore::DatabaseError) { |e| expect([e.unanswered?, e.passing?]).to eq([true, true]) }
    expect(backend).not_to be_nil
  end

  it "tells an answer from a failure to connect" do
    TaskerCore.config.database_url = "postgres://127.0.0.1:1/nowhere"

    expect { described_class.new.exec("SELECT 1") }
      .to raise_error(TaskerCore::DatabaseError) { |e| expect([e.unanswered?, e.passing?, e.sqlstate]).to eq([false, true, nil]) }
  end

  it "passes on the words of Postgres, with its hint" do
    expect { database.exec("SELECT * FROM tasker.report_results('[{}]')") }
      .to raise_error(TaskerCore::DatabaseError, /malformed report \{\} – a report has step_id/) { |e| expect(e).to be_refuses_data }
    expect { database.exec("SELECT tasker.no_such_function()") }.to raise_error(TaskerCore::DatabaseError, /tasker migrate up/)
  end

  it "doesn't reuse a connection whose statement was interrupted" do
    before = backend
    thread = Thread.new { database.exec("SELECT pg_sleep(60)") }
    thread.report_on_exception = false
    eventually("the statement runs") { TestDatabase.value("SELECT state FROM pg_stat_activity WHERE pid = $1", before) == "active" }
    thread.raise(Interrupt)

    expect { thread.join }.to raise_error(Interrupt)
    expect(backend).not_to eq(before)
  end

  it "shares its connections among threads" do
    pids = Array.new(8) { Thread.new { Array.new(20) { backend } } }.flat_map(&:value)

    expect(pids.uniq.size).to be_between(1, 2)
  end

  it "leaves the parent's connection alone in the child of a fork" do
    # In a process of its own, as the child ends in the usual way: with finalizers that close what they find.
    script = <<~RUBY
      pid = -> { TaskerCore.database.exec("SELECT pg_backend_pid()").getvalue(0, 0) }
      before = pid.call
      reader, writer = IO.pipe
      Process.wait(fork { writer.puts(pid.call) })
      Process.wait(fork { GC.start })
      writer.close
      print [before, reader.read.strip, pid.call].to_json
    RUBY
    output, status = Open3.capture2({ "TASKER_DATABASE_URL" => TestDatabase.url, "RUBYLIB" => SidekiqProcess::LIB },
                                    RbConfig.ruby, "-rtasker_core", "-rjson", "-e", script)
    before, child, after = JSON.parse(output)

    expect(status).to be_success
    expect(child).to match(/\A\d+\z/)
    expect(child).not_to eq(before)
    expect(after).to eq(before)
  end
end
