# frozen_string_literal: true

require "active_record"
require "open3"

RSpec.describe "The models of tasker's tables" do
  before do
    use_test_database
    ActiveRecord::Base.establish_connection(TestDatabase.url)
  end

  after { ActiveRecord::Base.remove_connection }

  let(:template) do
    register_template([{ position: 0, name: "work", handler_class: "Work", attempt_limit: 1 },
                       { position: 1, name: "after", handler: "tasker.echo", attempt_limit: 1, depends_on: [0] }])
  end

  def task(**options) = TaskerCore::Task.find(TaskerCore.enqueue_task(namespace: "spec", name: template, context: { a: [1] }, **options))

  def fail!(task)
    TestDatabase.connection.exec("UPDATE tasker.steps SET state = 'enqueued', attempts = 1 WHERE task_id = #{task.id} AND name = 'work'")
    TestDatabase.connection.exec("UPDATE tasker.steps SET state = 'error', error = '{\"class\": \"IOError\"}' WHERE task_id = #{task.id} AND name = 'work'")
    TestDatabase.connection.exec("UPDATE tasker.tasks SET state = 'error' WHERE task_id = #{task.id}")
    task.reload
  end

  it "read tasks, steps, events and templates, with what belongs to them" do
    parent = task(tags: %w[a b])
    child = task(parent_task_id: parent.id)

    expect(parent).to have_attributes(state: "pending", context: { "a" => [1] }, tags: %w[a b], priority: 2, parent: nil)
    expect(parent.steps.map { |step| [step.name, step.state, step.task] }).to eq([["work", "pending", parent], ["after", "pending", parent]])
    expect(parent.events.map(&:name)).to eq(["task.initialize_requested"])
    expect(parent.events.first.task).to eq(parent)
    expect([child.parent, parent.children.to_a]).to eq([parent, [child]])
    expect(parent.template).to have_attributes(full_name: "spec/#{template}@1.0.0", tasks: contain_exactly(parent, child))
    expect(parent.template.definition).to be_a(Hash)
    expect(TaskerCore::TaskTemplate.latest.map(&:name)).to include(template)
  end

  it "find tasks by state and name" do
    pending = task
    failed = fail!(task)
    paused = task.pause!(by: "ops")
    waiting = task
    TestDatabase.connection.exec("UPDATE tasker.steps SET state = 'enqueued' WHERE task_id = #{waiting.id} AND name = 'work'")
    TestDatabase.connection.exec("UPDATE tasker.steps SET state = 'waiting_for_retry' WHERE task_id = #{waiting.id} AND name = 'work'")
    ours = TaskerCore::Task.by_name(template)

    expect(ours.pending).to contain_exactly(pending, paused, waiting)
    expect(ours.failed).to contain_exactly(failed)
    expect(ours.unfinished).to contain_exactly(pending, paused, waiting)
    expect(ours.paused).to contain_exactly(paused)
    expect(ours.waiting).to contain_exactly(waiting)
    expect([ours.in_progress, ours.complete, ours.cancelled, ours.resolved_manually].map(&:to_a)).to all(be_empty)
    expect(TaskerCore::Task.by_name(template, namespace: "other")).to be_empty
    expect([failed.failed?, failed.finished?, failed.complete?, paused.paused?]).to eq([true, true, false, true])
    expect(failed.steps.failed.map(&:error)).to eq([{ "class" => "IOError" }])
    expect([failed.steps.first.failed?, failed.steps.first.complete?]).to eq([true, false])
  end

  it "write nothing" do
    one = task

    expect { one.update!(priority: 1) }.to raise_error(ActiveRecord::ReadOnlyRecord)
    expect { one.destroy }.to raise_error(ActiveRecord::ReadOnlyRecord)
    expect { one.delete }.to raise_error(ActiveRecord::ReadOnlyRecord)
    expect { one.update_columns(priority: 1) }.to raise_error(ActiveRecord::ReadOnlyRecord)
    expect { one.steps.create!(name: "x") }.to raise_error(ActiveRecord::ReadOnlyRecord)
    expect(one.reload.priority).to eq(2)
  end

  describe "what may be asked" do
    def last_event(record) = record.events.reload.last.then { |event| [event.name, event.data.slice("by", "reason")] }

    it "of a task" do
      one = task(run_at: Time.now + 3600)

      expect(one.change_priority!(1, by: "ann").priority).to eq(1)
      expect(one.pause!(by: "ann", reason: "gateway is down")).to be_paused
      expect(last_event(one)).to eq(["task.paused", { "by" => "ann", "reason" => "gateway is down" }])
      expect(one.resume!(by: "ann")).not_to be_paused
      expect(one.run_now!(by: "ann").run_at).to be_nil
      expect(one.cancel!(by: "ann", reason: "ordered twice").state).to eq("cancelled")
    end

    it "of a task in error" do
      expect(fail!(task).retry!(by: "ann", context: { a: [2] })).to have_attributes(state: "in_progress", context: { "a" => [2] })
      expect(fail!(task).resolve!(by: "ann").state).to eq("resolved_manually")
    end

    it "of a step" do
      expect(fail!(task).steps.first.retry!(by: "ann").state).to eq("pending")
      expect(fail!(task).steps.first.skip!(by: "ann").state).to eq("skipped")
      expect(fail!(task).steps.first.resolve!({ id: 7 }, by: "ann", reason: "by phone")).to have_attributes(state: "resolved_manually", result: { "id" => 7 })
      expect(fail!(task).steps.first.resolve!(by: "ann").result).to be_nil
    end

    it "is refused in the wrong state, and leaves the transaction usable" do
      one = task
      ActiveRecord::Base.transaction do
        expect { one.retry!(by: "ann") }.to raise_error(TaskerCore::StateTransitionError, "task #{one.id} is pending: only a task in error can be retried")
        one.pause!(by: "ann")
      end

      expect(one.reload).to be_paused
      expect { fail!(task).retry!(by: "ann", context: [1]) }.to raise_error(TaskerCore::ValidationError, /must be a JSON object, not array/)
      expect { one.cancel! }.to raise_error(ArgumentError, /by/)
    end

    it "belongs to the caller's transaction" do
      one = task
      ActiveRecord::Base.transaction do
        one.cancel!(by: "ann")
        raise ActiveRecord::Rollback
      end

      expect(one.reload.state).to eq("pending")
    end
  end

  describe "whose connection they use" do
    # In a process of its own: a model connects when it is loaded.
    def in_process(code, **env)
      output, status = Open3.capture2e(env.transform_keys(&:to_s), RbConfig.ruby, "-W0", "-I", SidekiqProcess::LIB, "-e", code)
      raise output unless status.success?

      output.strip
    end

    connected = 'require "active_record"; require "tasker_core"; ActiveRecord::Base.establish_connection(ENV["APP_URL"]);'
    shared = "print TaskerCore::Record.connection.equal?(ActiveRecord::Base.connection), ' ', TaskerCore::Task.connection.current_database"

    it "is ActiveRecord's where that is tasker's database" do
      expect(in_process(connected + shared, APP_URL: TestDatabase.url, TASKER_DATABASE_URL: TestDatabase.url))
        .to eq("true #{URI(TestDatabase.url).path.delete_prefix('/')}")
    end

    it "is one of their own where tasker's database is another" do
      expect(in_process(connected + shared, APP_URL: ENV.fetch("TASKER_TEST_DATABASE_URL"), TASKER_DATABASE_URL: TestDatabase.url))
        .to eq("false #{URI(TestDatabase.url).path.delete_prefix('/')}")
    end

    it "is what connects_to says" do
      code = <<~RUBY
        #{connected}
        ActiveRecord::Base.legacy_connection_handling = false if ActiveRecord::Base.respond_to?(:legacy_connection_handling=)
        ActiveRecord::Base.configurations = { "default_env" => { "primary" => { "url" => ENV["APP_URL"] }, "flows" => { "url" => ENV["FLOWS_URL"] } } }
        TaskerCore.configure { |config| config.connects_to = { database: { writing: :flows, reading: :flows } } }
        #{shared}
      RUBY
      expect(in_process(code, APP_URL: ENV.fetch("TASKER_TEST_DATABASE_URL"), FLOWS_URL: TestDatabase.url, TASKER_DATABASE_URL: ""))
        .to eq("false #{URI(TestDatabase.url).path.delete_prefix('/')}")
    end

    it "is asked for with words where ActiveRecord is missing" do
      expect(in_process('require "tasker_core"; begin; TaskerCore::Task; rescue TaskerCore::ConfigurationError => e; print e.message; end'))
        .to include("load active_record first")
    end
  end
end
