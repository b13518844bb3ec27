# frozen_string_literal: true

require "tasker_core/app_check"
require "yaml"

RSpec.describe "In a Rails app" do
  around { |example| RailsApp.open { |app| (@app = app) && example.run } }

  attr_reader :app

  before { use_test_database }

  describe "config.tasker" do
    it "takes settings from the application and from initializers, under its older name too" do
      app.write("config/initializers/tasker.rb", "Rails.application.config.tasker.report_timeout = 7\n")
      code = "c = TaskerCore.config; p [c.pool_size, c.report_timeout, c.current_attributes, c.executor.name]"

      expect(app.ruby(code)).to include('[3, 7, ["Current"], ')
      expect(app).to be_success
    end

    it "names a setting that there is not, and the near one" do
      app.write("config/initializers/tasker.rb", "Rails.application.config.tasker.pool_sise = 7\n")

      expect(app.ruby("p 1")).to include("config.tasker.pool_sise is no setting; did you mean pool_size?")
      expect(app).not_to be_success
    end
  end

  describe "rails generate tasker:install" do
    it "writes an initializer that names every setting and loads, with every line in use as well" do
      output = app.rails("generate", "tasker:install")

      expect(output).to match(%r{create .*config/tasker/tasks/\.keep}).and include("tasker migrate up", "schema_search_path")
      initializer = app.read("config/initializers/tasker.rb")
      expect(initializer.scan(/^  # config\.tasker\.(\w+) = .*$/).flatten.uniq).to match_array(TaskerCore::Configuration.settings.map(&:name))
      expect(app.read("config/sidekiq.yml")).to include("- default")
      app.write("config/initializers/tasker.rb", initializer.gsub(/^  # (config\.tasker\.\w+ = [^;\n]*)$/, '  \1').gsub(/^# (ActiveRecord)/, '\1'))
      expect(app.ruby("TaskerCore.config.validate!; print TaskerCore.config.start_timeout")).to eq("30")
    end

    it "leaves a config/sidekiq.yml alone, and knows db/structure.sql" do
      app.write("config/sidekiq.yml", ":queues: [mine]\n")
      app.write("config/initializers/schema.rb", "ActiveRecord::Base.schema_format = :sql\n")

      expect(app.rails("generate", "tasker:install")).to include("--exclude-schema=tasker")
      expect(app.read("config/sidekiq.yml")).to eq(":queues: [mine]\n")
    end
  end

  describe "rails generate tasker:task_handler" do
    def validate = Open3.capture2e(ENV.fetch("TASKER_BIN"), "template", "validate", File.join(app.folder, "config/tasker/tasks"))

    it "writes a valid template, handlers that the app has, and specs that pass" do
      app.write("spec/spec_helper.rb", 'require_relative "../config/environment"')
      app.rails("generate", "tasker:task_handler", "shop/fulfil_order", "reserve", "charge:reserve", "send-mail:reserve,charge")

      steps = %w[charge reserve send_mail]
      expect(app.files("app/handlers/shop", "config/tasker", "spec/handlers"))
        .to eq([*steps.map { |step| "app/handlers/shop/fulfil_order/#{step}.rb" }, "config/tasker/tasks/shop/fulfil_order.yaml",
                *steps.map { |step| "spec/handlers/shop/fulfil_order/#{step}_spec.rb" }])
      output, status = validate
      expect(status).to be_success, output
      expect(app.read("spec/handlers/shop/fulfil_order/charge_spec.rb"))
        .to include('run_step(described_class, step: "charge", context: {}, dependencies: { "reserve" => { done: "reserve" } })')
      expect(app.run("rspec")).to include("3 examples, 0 failures")
      expect(app.rails("tasker:check")).to include("ok    handler Shop::FulfilOrder::SendMail", "ok    queue default")
      app.write("app/handlers/shop/fulfil_order/charge.rb", app.read("app/handlers/shop/fulfil_order/charge.rb").sub("step.name", '"other"'))
      expect(app.run("rspec")).to include("3 examples, 1 failure")
    end

    it "writes Minitest tests where the app has those, and a task handler where one is asked for" do
      app.write("test/test_helper.rb", "require_relative \"../config/environment\"\nrequire \"rails/test_help\"\n")
      app.rails("generate", "tasker:task_handler", "nightly", "clean", "--task-handler")

      expect(app.files("app/handlers", "test")).to eq(%w[app/handlers/nightly/clean.rb app/handlers/nightly_handler.rb app/handlers/orders/charge.rb
                                                         test/handlers/nightly/clean_test.rb test/test_helper.rb])
      expect(app.read("config/tasker/tasks/nightly.yaml")).to include("namespace_name: default", "task_handler_class: NightlyHandler")
      expect(validate.last).to be_success
      tests = -> { app.run(RbConfig.ruby, "-Itest", "test/handlers/nightly/clean_test.rb") }
      expect(tests.call).to include("1 runs, 2 assertions, 0 failures, 0 errors")
      app.write("app/handlers/nightly/clean.rb", app.read("app/handlers/nightly/clean.rb").sub("step.name", '"other"'))
      expect(tests.call).to include("1 runs, 2 assertions, 1 failures, 0 errors")
    end

    it "writes a task handler that makes tasks of the template" do
      name = "nightly_#{SecureRandom.hex(4)}"
      app.rails("generate", "tasker:task_handler", "maintenance/#{name}", "clean", "report:clean", "--task-handler", "--test-framework", "none")
      output, status = Open3.capture2e({ "TASKER_DATABASE_URL" => TestDatabase.url }, ENV.fetch("TASKER_BIN"), "template", "register",
                                       File.join(app.folder, "config/tasker/tasks"))
      expect(status).to be_success, output

      made = app.ruby(<<~RUBY)
        handler = Maintenance::#{name.split('_').map(&:capitalize).join}Handler
        found = TaskerCore::TaskHandlerRegistry.new.handler_for(namespace: "maintenance", name: "#{name}")
        result = found.initialize_task({ context: { day: 1 } })
        print [found.class == handler, result.step_mapping.keys, handler.enqueue({ day: 2 }).task_id - result.task_id].inspect
      RUBY
      expect(made).to end_with('[true, ["clean", "report"], 1]')
      expect(TestDatabase.connection.exec_params("SELECT context ->> 'day' AS day FROM tasker.tasks WHERE name = $1 ORDER BY task_id", [name]).column_values(0))
        .to eq(%w[1 2])
    end

    {
      %w[charge:reserve] => "charge depends on reserve, which is no step; the steps are: charge",
      %w[a:b b:a] => "these steps depend on each other in a circle: ",
      %w[a a] => "two steps are called A",
      ["9 lives"] => '"9 lives" is no name for a step',
      %w[a --version 1] => 'the version "1" is not MAJOR.MINOR.PATCH'
    }.each do |steps, message|
      it "refuses #{steps.join(' ')}, and writes nothing" do
        expect(app.rails("generate", "tasker:task_handler", "shop/fulfil_order", *steps)).to include(message)
        expect(app.files("config/tasker", "app/handlers/shop")).to be_empty
      end
    end
  end

  describe "rails generate tasker:subscriber" do
    it "writes a class with a method for each event, and its spec" do
      app.write("spec/spec_helper.rb", 'require_relative "../config/environment"')
      app.rails("generate", "tasker:subscriber", "OrderMailer", "task.completed", "step.failed")

      expect(app.read("app/subscribers/order_mailer.rb"))
        .to include("class OrderMailer < TaskerCore::EventSubscriber", 'subscribe_to "task.completed", "step.failed"', "def handle_task_completed(event)",
                    "def handle_step_failed(event)")
      expect(app.run(RbConfig.ruby, "-c", "app/subscribers/order_mailer.rb", "spec/subscribers/order_mailer_spec.rb")).to include("Syntax OK")
      expect(app.run("rspec")).to include("2 examples, 0 failures")
      app.write("app/subscribers/order_mailer.rb", app.read("app/subscribers/order_mailer.rb").sub("handle_step_failed(event)", "handle_step_failed"))
      expect(app.run("rspec")).to include("2 examples, 1 failure")
      expect(app.rails("generate", "tasker:subscriber", "OrderMailer", "completed")).to include('"completed" is no event')
      expect(app.rails("generate", "tasker:subscriber", "OrderMailer", "task.complete")).to include("did you mean task.completed?")
    end

    it "writes a class that the app can subscribe, and Minitest tests where the app has those" do
      app.write("test/test_helper.rb", "require_relative \"../config/environment\"\nrequire \"rails/test_help\"\n")
      app.rails("generate", "tasker:subscriber", "OrderMailer", "task.completed", "order.item.shipped")

      expect(app.run(RbConfig.ruby, "-Itest", "test/subscribers/order_mailer_test.rb")).to include("2 runs, 2 assertions, 0 failures, 0 errors")
      expect(app.ruby("OrderMailer; TaskerCore::EventPublisher.subscriptions.each { |one| print one.tap(&:check!).inspect }"))
        .to eq("#<TaskerCore::EventSubscription order_mailer: task.completed, order.item.shipped>")
    end
  end

  describe "rails tasker:check" do
    def template(handler_class, **more)
      YAML.dump({ "name" => "t", "version" => "1.0.0", "step_templates" => [{ "name" => "work", "handler_class" => handler_class,
                                                                              **more.transform_keys(&:to_s) }] })
    end

    # Another database than that of the other examples, which has their templates.
    def on_empty_database
      name = "#{URI(TestDatabase.url).path.delete_prefix('/')}_check"
      url = URI(TestDatabase.url).tap { |uri| uri.path = "/#{name}" }.to_s
      TestDatabase.connection.exec("CREATE DATABASE #{name}")
      tasker = lambda do |*arguments|
        output, status = Open3.capture2e({ "TASKER_DATABASE_URL" => url }, ENV.fetch("TASKER_BIN"), *arguments)
        raise output unless status.success?
      end
      yield({ "SHOP_DATABASE_URL" => url }, tasker)
    ensure
      TestDatabase.connection.exec("DROP DATABASE #{name} WITH (FORCE)")
    end

    it "follows the schema" do
      on_empty_database do |env, tasker|
        expect(app.rails("tasker:check", env:)).to match(/^WRONG database: .*tasker migrate up/)
        expect(app).not_to be_success

        tasker.call("migrate", "up")
        expect(app.rails("tasker:check", env:)).to match(/^ok    database: schema tasker at migration #{TaskerCore::AppCheck::NEEDED_MIGRATION}$/)
        expect(app).to be_success

        tasker.call("migrate", "down", "--steps", "1", "--yes")
        expect(app.rails("tasker:check", env:)).to match(/^WRONG database: its schema has migration \d+, tasker_core .* needs \d+: tasker migrate up$/)
      end
    end

    it "finds handlers and queues that are missing, in files and in the database" do
      on_empty_database do |env, tasker|
        tasker.call("migrate", "up")
        app.write("registered/old.yaml", template("Orders::Gone").sub("name: t", "name: old"))
        tasker.call("template", "register", "#{app.folder}/registered")
        app.write("app/handlers/orders/broken.rb", "module Orders\n  class Broken < TaskerCore::BaseStepHandler\n    LIMIT = Nowhere\n  end\nend\n")
        app.write("config/tasker/tasks/a.yaml", template("Orders::Refund", queue: "billing"))
        app.write("config/tasker/tasks/b.yaml", template("Kernel", queue: "slow"))
        app.write("config/tasker/tasks/c.yaml", template("Orders::Broken"))
        app.write("config/tasker/tasks/d.yaml", "name: [")
        app.write("config/tasker/tasks/e.yaml", template("InvoiceJob"))
        app.write("config/tasker/tasks/f.yaml", "#{template('Nowhere')}environments: {test: {step_templates: [{name: work, handler: tasker.echo}]}}\n")
        app.write("config/sidekiq.yml", ":queues:\n  - [default, 2]\ntest:\n  :queues:\n    - [default, 2]\n    - <%= 'slow' %>\n")
        output = app.rails("tasker:check", env:)

        expect(app).not_to be_success
        expect(output.lines.grep(/^WRONG/).map(&:chomp)).to contain_exactly(
          %r{config/tasker/tasks/a\.yaml \(work\): no class Orders::Refund in this .*app/handlers/orders/refund\.rb},
          %r{config/tasker/tasks/b\.yaml \(work\): Kernel is not a step handler},
          %r{config/tasker/tasks/c\.yaml \(work\): Orders::Broken can't be loaded: NameError: .*Nowhere},
          %r{config/tasker/tasks/d\.yaml can't be read .*tasker template validate},
          %r{default/old@1\.0\.0 \(work\): no class Orders::Gone},
          %r{config/tasker/tasks/a\.yaml \(work\): nobody listens to the queue billing: add it under :queues: in config/sidekiq\.yml}
        )
        expect(output).to include("ok    handler InvoiceJob", "ok    queue slow", "ok    templates: 6 in")
        expect(app.rails("tasker:templates", env:)).to eq("default/old@1.0.0  1 steps\n")
        expect(app.rails("tasker:status", env:)).to eq("no tasks\n")
      end
    end

    it "finds steps that go to another queue than their handler is meant for" do
      app.write("app/handlers/orders/slow.rb", "class Orders::Slow < TaskerCore::BaseStepHandler\n  queue :low\nend\n")
      app.write("app/handlers/orders/slower.rb", "class Orders::Slower < Orders::Slow\nend\n")
      app.write("config/sidekiq.yml", ":queues: [default, low]\n")
      { a: %w[Orders::Slow low], b: %w[Orders::Slow default], c: %w[Orders::Slower default], d: %w[Orders::Charge low], e: %w[InvoiceJob low] }
        .each { |name, (handler, queue)| app.write("config/tasker/tasks/#{name}.yaml", template(handler, queue:)) }
      output = on_empty_database do |env, tasker|
        tasker.call("migrate", "up")
        app.rails("tasker:check", env:)
      end

      expect(app).not_to be_success
      expect(output.lines.grep(/^WRONG/).map(&:chomp)).to contain_exactly(
        "WRONG config/tasker/tasks/b.yaml (work): Orders::Slow is meant for the queue low, and its jobs go to default: " \
        'say queue: low in the template, or queue "default" in the handler',
        %r{\AWRONG config/tasker/tasks/c\.yaml \(work\): Orders::Slower is meant for the queue low}
      )
    end

    it "counts a queue that a running Sidekiq listens to, and misses Redis" do
      app.write("config/tasker/tasks/a.yaml", template("Orders::Charge", queue: "billing"))
      SidekiqProcess.run("plain/boot.rb", "-q", "billing") do |sidekiq|
        eventually("the process says its queues") { sidekiq.redis.smembers("processes").any? { |name| sidekiq.redis.hget(name, "info") } }
        expect(app.rails("tasker:check", env: { "REDIS_URL" => sidekiq.redis_url })).to match(/^ok    queue billing$/)
      end

      expect(app.rails("tasker:check", env: { "REDIS_URL" => "redis://127.0.0.1:1" })).to match(/^WRONG Redis: .*correct REDIS_URL$/)
    end

    it "needs the newest migration that this repository has" do
      newest = Dir[File.expand_path("../../migrations/sql/*.up.sql", __dir__)].map { |file| File.basename(file).to_i }.max

      expect(TaskerCore::AppCheck::NEEDED_MIGRATION).to eq(newest)
    end
  end

  it "counts tasks by state" do
    template = register_template([{ position: 0, name: "a", handler: "tasker.echo", attempt_limit: 1 }])
    TestDatabase.connection.exec("INSERT INTO tasker.tasks (namespace, name) VALUES ('spec', '#{template}')")

    expect(app.rails("tasker:status")).to match(%r{^ +1  pending +spec/workflow_\h+$})
  end

  it "hands rails tasker:events on to EventPublisher.run" do
    app.write("config/initializers/events.rb", <<~RUBY)
      TaskerCore.const_set(:EventPublisher, Module.new) unless TaskerCore.const_defined?(:EventPublisher)
      TaskerCore::EventPublisher.define_singleton_method(:run) { puts "it runs" }
    RUBY

    expect(app.rails("tasker:events")).to eq("it runs\n")
  end

  it "runs jobs of its own as steps, in Sidekiq, with the values of Current and tags in its log" do
    env = { "TASKER_DATABASE_URL" => nil, "DATABASE_URL" => nil, "SHOP_DATABASE_URL" => TestDatabase.url }
    SidekiqProcess.run("rails", env:) do |sidekiq|
      invoice = dispatch("InvoiceJob", handler_config: { arguments: ["$.context.order_id"] })
      busy = dispatch("InvoiceJob", handler_config: { arguments: [1], keywords: { fail: true } }, attempt: 2)
      report = dispatch("ReportWorker", handler_config: { arguments: ["$.context.order_id", "weekly"] })
      fire = dispatch("ReportWorker", handler_config: { arguments: [8, "fire"] }, attempt: 3)
      # Signed by another process of the app, with the key that comes of its secret_key_base.
      template = TestDatabase.value("SELECT name FROM tasker.tasks WHERE task_id = $1", invoice.task_id)
      carrier = app.ruby("Current.locale = 'de'; print TaskerCore::TaskCarrier.to_json('spec', '#{template}')")
      TestDatabase.connection.exec_params("UPDATE tasker.tasks SET carrier = $2 WHERE task_id = $1", [invoice.task_id, carrier])
      [invoice, busy, report, fire].each { |step| sidekiq.push(step) }
      eventually("all are done:\n#{sidekiq.output}") { invoice.result && report.result && busy.failure && fire.failure }

      expect(invoice.result).to eq("invoice" => 5, "locale" => "de", "executions" => 1)
      expect(busy.failure).to include("class" => "TaskerCore::RetryableError", "message" => "IOError: printer is busy",
                                      "retry_after" => a_value_between(11, 13))
      expect(report.result).to match("report" => 5, "jid" => /\A\h{24}\z/)
      expect(eventually("the worker hears of it") { sidekiq.redis.lrange("exhausted", 0, -1).first }).to eq("ReportWorker [8,\"fire\"] printer is on fire")
      expect(sidekiq.redis.keys("*")).not_to include("retry", "schedule", "dead", "queue:default")
      expect(sidekiq.redis.lrange("middleware", 0, -1)).to include("TaskerCore::StepJob ReportWorker #{report.step_id} 1")
    end
  end
end
