# frozen_string_literal: true

require "active_record"
require "active_support"
require "active_support/core_ext/time/zones"

RSpec.describe "TaskerCore.enqueue_task" do
  let(:template) { register_template([{ position: 0, name: "charge", handler_class: "Orders::Charge", attempt_limit: 3 }]) }

  def task(id) = TestDatabase.row("SELECT * FROM tasker.tasks WHERE task_id = $1", id)

  def enqueue(**options) = TaskerCore.enqueue_task(namespace: "spec", name: template, **options)

  def tasks = TestDatabase.value("SELECT count(*) FROM tasker.tasks WHERE name = $1", template).to_i

  context "with a connection of the caller's" do
    let(:connection) { TestDatabase.connection }

    it "inserts the task and returns its id" do
      id = enqueue(context: { order_id: 5, at: Time.at(0) }, connection:)

      expect(task(id)).to include("namespace" => "spec", "name" => template, "version" => "1.0.0", "state" => "pending", "priority" => "2")
      expect(JSON.parse(task(id)["context"])).to eq("order_id" => 5, "at" => "1970-01-01T00:00:00.000000Z")
    end

    it "passes every option on" do
      id = enqueue(context: {}, connection:, version: "1.0.0", priority: 1, run_at: Time.utc(2030, 1, 2, 3, 4, 5.5r), idempotency_key: "k",
                   on_duplicate: :refuse, correlation_id: "req-1", tags: ["a b", 'c"d,{}', :e], initiator: "me", source_system: "shop", reason: "test")

      expect(task(id)).to include("priority" => "1", "idempotency_key" => "k", "correlation_id" => "req-1", "initiator" => "me",
                                  "source_system" => "shop", "reason" => "test")
      expect(PG::TextDecoder::Array.new.decode(task(id)["tags"])).to eq(["a b", 'c"d,{}', "e"])
      expect(TestDatabase.value("SELECT run_at = '2030-01-02 03:04:05.5+00' FROM tasker.tasks WHERE task_id = $1", id)).to eq("t")
    end

    it "takes a Date for the midnight at which it begins in the app's zone" do
      Time.use_zone("Asia/Tokyo") do
        id = enqueue(run_at: Date.new(2030, 12, 1), deadline: DateTime.new(2030, 12, 2, 3, 4, 5, "+02:00"), connection:)
        sql = "SELECT run_at = '2030-12-01 00:00:00+09' AND deadline = '2030-12-02 03:04:05+02' FROM tasker.tasks WHERE task_id = $1"
        expect(TestDatabase.value(sql, id)).to eq("t")
      end
    end

    it "returns the task that has the idempotency key already, or refuses, as asked" do
      id = enqueue(idempotency_key: "k", connection:)

      expect(enqueue(idempotency_key: "k", connection:)).to eq(id)
      expect { enqueue(idempotency_key: "k", on_duplicate: "refuse", connection:) }.to raise_error(TaskerCore::TaskRefusedError, /idempotency key/)
    end

    it "takes part in the caller's transaction" do
      connection.exec("BEGIN")
      enqueue(connection:)
      connection.exec("ROLLBACK")

      expect(tasks).to eq(0)
    end

    it "says what to mend about an unknown template" do
      expect { TaskerCore.enqueue_task(namespace: "spec", name: "nothing", connection:) }
        .to raise_error(TaskerCore::TaskRefusedError, %r{there is no template spec/nothing.* – register it}) { |e| expect(e.cause).to be_a(PG::Error) }
    end

    it "says what in the context is not JSON" do
      expect { enqueue(context: { order: { total: Float::NAN } }, connection:) }
        .to raise_error(TaskerCore::TaskRefusedError, "the context is not JSON: $.order.total is NaN, which JSON doesn't have")
    end

    it "doesn't hide what is no refusal" do
      closed = PG.connect(TestDatabase.url).tap(&:close)

      expect { enqueue(connection: closed) }.to raise_error(PG::ConnectionBad)
    end
  end

  context "with ActiveRecord" do
    before { ActiveRecord::Base.establish_connection(TestDatabase.url) }
    after { ActiveRecord::Base.remove_connection }

    it "inserts the task on its connection" do
      expect(task(enqueue(context: { order_id: 5 }, tags: ["a"]))).to include("state" => "pending", "tags" => "{a}")
    end

    it "starts the task if and only if the transaction commits" do
      ActiveRecord::Base.transaction do
        enqueue
        expect(tasks).to eq(0) # seen from outside
        raise ActiveRecord::Rollback
      end
      expect(tasks).to eq(0)

      ActiveRecord::Base.transaction { enqueue }
      expect(tasks).to eq(1)
    end

    it "isn't fooled by the query cache" do
      ActiveRecord::Base.cache { 2.times { enqueue } }

      expect(tasks).to eq(2)
    end

    it "refuses as without it" do
      expect { TaskerCore.enqueue_task(namespace: "spec", name: "nothing") }.to raise_error(TaskerCore::TaskRefusedError, /there is no template/)
    end

    it "finds the database of the jobs there as well" do
      expect(TaskerCore::DatabaseParameters.from_active_record).to include(dbname: URI(TestDatabase.url).path.delete_prefix("/"))
    end
  end
end
