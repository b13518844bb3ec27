# frozen_string_literal: true

require "active_support"
require "active_support/notifications"
require "active_support/tagged_logging"

RSpec.describe TaskerCore::HandlerSurroundings do
  let(:order) { [] }

  before { use_test_database }

  def handler(&)
    stub_const("Work", Class.new(TaskerCore::BaseStepHandler) { define_method(:process, &) })
    "Work"
  end

  # A Rails of this example's: `rails` itself isn't loaded in this process.
  def rails(**members)
    stub_const("Rails", Module.new)
    members.each { |name, value| Rails.define_singleton_method(name) { value } }
  end

  describe "middleware" do
    it "is called around the handler, the first outermost, and what it returns is ignored" do
      calls = order
      step = dispatch(handler { |*| calls.push("handler") && "result" })
      %w[outer inner].each do |name|
        TaskerCore.config.middleware << lambda do |task, context, &run|
          calls << "#{name} #{task.task_id == step.task_id} #{context.name}"
          run.call
          calls << "#{name} done"
          "ignored"
        end
      end
      perform(step)

      expect(order).to eq(["outer true work", "inner true work", "handler", "inner done", "outer done"])
      expect(step.result).to eq("result")
    end

    it "fails the attempt with its errors, and has to call its block" do
      step = dispatch(handler { |*| "never" })
      TaskerCore.config.middleware << ->(*) { "no block" }

      expect { perform(step) }.to raise_error(TaskerCore::ConfigurationError, /config\.middleware did not call its block/)
      expect(step.failure).to include("class" => "TaskerCore::ConfigurationError")
    end

    it "calls its block once" do
      runs = order
      step = dispatch(handler { |*| runs << "run" })
      TaskerCore.config.middleware << lambda do |*, &run|
        2.times { run.call }
      end

      expect { perform(step) }.to raise_error(TaskerCore::ConfigurationError, /called its block twice/)
      expect(order).to eq(["run"])
    end

    it "is refused when it can't be called" do
      expect { TaskerCore.configure { |config| config.middleware = [->(*) {}, "Timing"] } }
        .to raise_error(TaskerCore::ConfigurationError, 'middleware[1] has no method call: "Timing"')
      expect { use_test_database(middleware: [], on_error: ->(*) {}) }.to raise_error(TaskerCore::ConfigurationError, /on_error must be an Array/)
    end

    it "may be changed by configuring again" do
      perform(dispatch(handler { |*| 1 }))
      calls = order
      TaskerCore.configure do |config|
        config.middleware << lambda do |*, &run|
          calls << "later"
          run.call
        end
      end
      perform(dispatch("Work"))

      expect(order).to eq(["later"])
    end
  end

  it "calls the handler directly where nothing is loaded or configured" do
    %w[ActiveSupport ActiveRecord].each { |name| hide_const(name) }
    surroundings = described_class.new(TaskerCore.config)
    depth = surroundings.call(nil, nil) { caller_locations(0).size }

    expect(depth - caller_locations(0).size).to be <= 2 # this block and call
  end

  describe "perform.tasker" do
    it "says which attempt ran, and how it failed" do
      events = []
      step = dispatch(handler { |*| raise IOError, "gateway closed" })
      ActiveSupport::Notifications.subscribed(proc { |event| events << event }, "perform.tasker") { expect { perform(step) }.to raise_error(IOError) }

      expect(events.size).to eq(1)
      expect(events.first.payload).to include(task_id: step.task_id, step_id: step.step_id, attempt: 1, handler: "Work", step: "work",
                                              template: %r{\Aspec/workflow_\h+@1\.0\.0\z}, exception_object: be_a(IOError))
    end
  end

  describe "log tags" do
    def lines_of_rails
      output = StringIO.new
      logger = ActiveSupport::TaggedLogging.new(Logger.new(output))
      rails(logger:)
      step = dispatch(handler { |*| logger.info("charged") })
      perform(step)
      [output.string, step]
    end

    it "are set around the handler on Rails's logger" do
      lines, step = lines_of_rails

      expect(lines).to include("[tasker] [task=#{step.task_id}] [step=work] charged")
      expect(Rails.logger.formatter.current_tags).to be_empty
    end

    it "may be switched off" do
      use_test_database(log_tags: false)

      expect(lines_of_rails.first).to eq("charged\n")
    end

    it "are left out on a logger without tags" do
      rails(logger: Logger.new(log))
      step = dispatch(handler { |*| "fine" })
      perform(step)

      expect(step.result).to eq("fine")
    end
  end

  it "wraps the handler in the executor outside of Sidekiq" do
    calls = order
    executor = Object.new
    executor.define_singleton_method(:wrap) { |&run| (calls << "wrapped") && run.call }
    use_test_database(executor:)
    perform(dispatch(handler { |*| calls << "handler" }))

    expect(order).to eq(%w[wrapped handler])
    expect { use_test_database(executor: 1) }.to raise_error(TaskerCore::ConfigurationError, /executor has no method wrap: 1/)
  end

  describe "error reports" do
    let(:reports) { [] }

    # Stands in for Rails.error, which Rails has from version 7 on.
    def reporter
      all = reports
      Object.new.tap do |error|
        error.define_singleton_method(:report) { |e, handled:, context:, source:| all << [e.message, handled, source, context] }
      end
    end

    it "go to on_error for a handler that there is not" do
      all = []
      use_test_database(on_error: [->(error, context) { all << [error.class, context[:handler], context[:step]] }])
      step = dispatch("File")

      expect { perform(step) }.to raise_error(TaskerCore::HandlerNotFoundError)
      expect(all).to eq([[TaskerCore::HandlerNotFoundError, "File", "work"]])
    end

    def failing(error, attempt: 1)
      step = dispatch(handler { |*| raise error }, attempt:)
      expect { perform(step) }.to raise_error(error.class)
      step
    end

    def on_error
      all = reports
      use_test_database(on_error: [->(error, context) { all << [error.message, context[:attempt]] }])
    end

    it "go to Rails.error for what fails a step for good" do
      rails(error: reporter)
      step = failing(TaskerCore::PermanentError.new("declined"))

      expect(reports).to eq([["declined", true, "tasker_core",
                              { task_id: step.task_id, step_id: step.step_id, step: "work", attempt: 1, handler: "Work",
                                template: reports.dig(0, 3, :template) }]])
    end

    it "go to on_error, without Rails" do
      on_error
      failing(IOError.new("first"))
      failing(IOError.new("last"), attempt: 3)

      expect(reports).to eq([["last", 3]])
    end

    it "go to on_error at the first attempt when a rule says that no other mends it" do
      on_error
      stub_const("Declined", Class.new(StandardError))
      handler { |*| raise Declined, "by the handler" }
      Work.permanent_error(Declined)
      expect { perform(dispatch("Work")) }.to raise_error(Declined)
      TaskerCore.config.permanent_errors = [IOError]
      failing(EOFError.new("by the settings"))

      expect(reports).to eq([["by the handler", 1], ["by the settings", 1]])
    end

    # AttemptRun has it around its HandlerLookup.
    it "go to on_error for a handler that there is not" do
      all = reports
      use_test_database(on_error: [->(error, context) { all << [error.class, context[:handler], context[:task_id]] }])
      answer = contract("start_attempt")
      lookup = lambda do |name|
        answer["step"]["handler_class"] = name
        TaskerCore::ErrorReports.around_lookup(answer, TaskerCore.config) { TaskerCore::HandlerLookup.find(name) }
      end

      expect(lookup.call(handler { |*| nil })).to eq(Work)
      expect { lookup.call("Orders::Gone") }.to raise_error(TaskerCore::HandlerNotFoundError)
      expect(reports).to eq([[TaskerCore::HandlerNotFoundError, "Orders::Gone", 7]])
    end

    it "leave a handler that there is not alone, where nobody is to hear" do
      hide_const("Rails")

      expect { TaskerCore::ErrorReports.around_lookup({}, TaskerCore.config) { raise "broken" } }.to raise_error("broken")
    end

    it "may tell of what is retried as well" do
      on_error
      TaskerCore.config.report_retried_errors = true
      failing(IOError.new("first"))

      expect(reports).to eq([["first", 1]])
    end

    it "tell nothing of an attempt that is over or shut down" do
      on_error
      failing(TaskerCore::AttemptOverError.new("cancelled"), attempt: 3)
      handler do |*|
        raise Sidekiq::Shutdown
      rescue Sidekiq::Shutdown
        begin
          raise "wrapped"
        rescue StandardError
          raise "wrapped again"
        end
      end
      expect { perform(dispatch("Work", attempt: 3)) }.to raise_error("wrapped again")

      expect(reports).to be_empty
    end

    it "change nothing when they fail themselves" do
      all = reports
      use_test_database(on_error: [->(*) { raise "tracker is down" }, ->(error, _) { all << error.message }])
      step = failing(TaskerCore::PermanentError.new("declined", error_code: "card"))

      expect(reports).to eq(["declined"])
      expect(step.failure).to include("code" => "card")
      expect(logged).to include("config.on_error raised RuntimeError: tracker is down")
    end
  end
end
