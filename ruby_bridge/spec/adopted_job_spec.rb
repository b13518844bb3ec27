# frozen_string_literal: true

require "active_job"

RSpec.describe TaskerCore::AdoptedJob do
  before do
    use_test_database
    ActiveJob::Base.logger = Logger.new(log)
    ActiveJob::Base.queue_adapter = :test
  end

  let(:seen) { [] }
  let(:job_module) { defined?(Sidekiq::Job) ? Sidekiq::Job : Sidekiq::Worker }

  def sidekiq_job(name = "InvoiceJob", &)
    marker = job_module
    stub_const(name, Class.new { include marker }).class_eval(&)
    name
  end

  def active_job(name = "InvoiceJob", &)
    stub_const(name, Class.new(ActiveJob::Base))
    Object.const_get(name).class_eval(&)
    name
  end

  def dispatch_with(config, name, **options) = dispatch(name, handler_config: config, **options)

  def performed(step)
    perform(step)
    nil
  rescue StandardError => e
    e
  end

  def enqueued = ActiveJob::Base.queue_adapter.enqueued_jobs

  describe "which classes" do
    it "are jobs of the app's own" do
      sidekiq_job { def perform(*) = 1 }
      active_job("Billing::Job") { def perform(*) = 1 }

      expect(TaskerCore::HandlerLookup.find("InvoiceJob").job_class).to equal(InvoiceJob)
      expect(TaskerCore::HandlerLookup.find("Billing::Job").job_class).to equal(Billing::Job)
    end

    ["ActiveJob::QueueAdapters::SidekiqAdapter::JobWrapper", "ActiveJob::Base", "Sidekiq::Extensions::DelayedClass", "TaskerCore::StepJob",
     "Sidekiq::Worker"].each do |name|
      it "can't be #{name}" do
        require "active_job/queue_adapters/sidekiq_adapter"
        expect { TaskerCore::HandlerLookup.find(name) }.to raise_error(TaskerCore::HandlerNotFoundError)
      end
    end

    it "can't be a job of Rails that runs whatever its arguments name" do
      active_job("ActionMailer::MailDeliveryJob") { def perform(*) = 1 }

      expect { TaskerCore::HandlerLookup.find("ActionMailer::MailDeliveryJob") }
        .to raise_error(TaskerCore::HandlerNotFoundError, /is not a step handler/)
      stub_const("OwnDeliveryJob", Class.new(ActionMailer::MailDeliveryJob))
      expect { TaskerCore::HandlerLookup.find("OwnDeliveryJob") }.to raise_error(TaskerCore::HandlerNotFoundError)
    end

    it "may be limited, or ruled out" do
      sidekiq_job { def perform(*) = 1 }
      use_test_database(adopt_jobs: ["OtherJob"])
      expect { TaskerCore::HandlerLookup.find("InvoiceJob") }.to raise_error(TaskerCore::HandlerNotFoundError, /config\.adopt_jobs/)
      use_test_database(adopt_jobs: false)
      expect { TaskerCore::HandlerLookup.find("InvoiceJob") }.to raise_error(TaskerCore::HandlerNotFoundError)
      use_test_database(adopt_jobs: ["InvoiceJob"])
      expect(TaskerCore::HandlerLookup.find("InvoiceJob").name).to eq("InvoiceJob")
      expect { use_test_database(adopt_jobs: "InvoiceJob") }.to raise_error(TaskerCore::ConfigurationError, /adopt_jobs must be/)
    end
  end

  describe "of Sidekiq" do
    it "gets the context, its own copy, and a jid" do
      all = seen
      sidekiq_job do
        define_method(:perform) do |context|
          all << [context, jid]
          context["order_id"] += 1
          context
        end
      end
      step = dispatch("InvoiceJob")
      perform(step)

      expect(seen).to eq([[{ "order_id" => 6 }, Digest::SHA256.hexdigest("#{step.step_id}:1")[0, 24]]])
      expect(step.result).to eq("order_id" => 6)
    end

    it "completes the step without a result when what it returns is no JSON" do
      sidekiq_job { def perform(*) = Object.new }
      step = dispatch("InvoiceJob")
      perform(step)

      expect([step.state, step.result]).to eq(["complete", nil])
    end

    def exhausted_job
      all = seen
      sidekiq_job do
        sidekiq_options retry: 25, queue: "billing"
        sidekiq_retries_exhausted { |job, error| all << [job.slice("class", "args", "queue", "error_message"), error.class] }
        define_method(:perform) { |*| raise IOError, "gateway closed" }
      end
    end

    it "is retried by the engine alone, and hears of it when no attempt follows" do
      exhausted_job
      first = dispatch("InvoiceJob")
      expect(performed(first)).to be_a(IOError)
      expect(seen).to be_empty
      expect(first.failure).to include("class" => "IOError", "permanent" => false)

      expect(performed(dispatch("InvoiceJob", attempt: 3))).to be_a(IOError)
      expect(seen).to eq([[{ "class" => "InvoiceJob", "args" => [{ "order_id" => 5 }], "queue" => "billing", "error_message" => "gateway closed" }, IOError]])
    end

    it "fails as it failed when sidekiq_retries_exhausted fails as well" do
      exhausted_job
      InvoiceJob.sidekiq_retries_exhausted { |*| raise "mail server is down" }
      step = dispatch("InvoiceJob", attempt: 3)

      expect(performed(step)).to be_a(IOError)
      expect(logged).to include("sidekiq_retries_exhausted of InvoiceJob raised RuntimeError: mail server is down")
    end
  end

  describe "of ActiveJob" do
    it "runs with its callbacks, arguments and keywords, and knows how often it has run" do
      all = seen
      active_job do
        before_perform { all << "before" }
        define_method(:perform) do |id, note, key:|
          all << [id, note, key, executions, queue_name]
          { paid: id }
        end
      end
      step = dispatch_with({ arguments: ["$.context.order_id", "$$.literal"], keywords: { key: "$.idempotency_key" } }, "InvoiceJob", attempt: 2)
      perform(step)

      expect(seen).to match(["before", [5, "$.literal", match(/\Atasker-\h{12}-#{step.step_id}\z/), 2, "default"]])
      expect(step.result).to eq("paid" => 5)
    end

    it "has the same job_id for each attempt" do
      all = seen
      active_job { define_method(:perform) { |*| (all << job_id) && raise(IOError) } }
      step = dispatch("InvoiceJob")
      performed(step)
      TestDatabase.connection.exec("UPDATE tasker.steps SET state = 'waiting_for_retry' WHERE step_id = #{step.step_id}")
      TestDatabase.connection.exec("UPDATE tasker.steps SET state = 'enqueued', attempts = 2 WHERE step_id = #{step.step_id}")
      TestDatabase.connection.exec("UPDATE tasker.dispatches SET failure = NULL, started_at = NULL, attempt = 2, " \
                                   "ticket = step_id * 1000 + 2 WHERE step_id = #{step.step_id}")
      performed(WorkflowHelpers::DispatchedStep.new(step.task_id, step.step_id, 2, "InvoiceJob"))

      expect(seen.size).to eq(2)
      expect(seen.uniq.size).to eq(1)
    end

    it "asks the engine for its retry_on, and enqueues nothing" do
      active_job do
        retry_on IOError, wait: ->(executions) { executions * 7 }, attempts: 5
        define_method(:perform) { |*| raise IOError, "gateway closed" }
      end
      step = dispatch("InvoiceJob", attempt: 2)

      expect(performed(step)).to be_a(TaskerCore::RetryableError)
      expect(step.failure).to include("class" => "TaskerCore::RetryableError", "message" => "IOError: gateway closed", "cause" => "IOError",
                                      "permanent" => false, "retry_after" => 14)
      expect(step.failure["backtrace"].first).to include("adopted_job_spec.rb")
      expect(enqueued).to be_empty
    end

    it "asks the engine for its retry_job, and does the rest of its work" do
      all = seen
      active_job do
        define_method(:perform) do |*|
          retry_job(wait: 30)
          all << "rest"
        end
      end
      step = dispatch("InvoiceJob")
      performed(step)

      expect(step.failure).to include("message" => "InvoiceJob asked to be retried", "retry_after" => 30)
      expect([seen, enqueued]).to eq([["rest"], []])
    end

    it "fails for good with what it discards" do
      all = seen
      active_job do
        discard_on(IOError) { |_job, error| all << error.message }
        define_method(:perform) { |*| raise IOError, "order is gone" }
      end
      step = dispatch("InvoiceJob")
      performed(step)

      expect(step.failure).to include("permanent" => true, "code" => "discarded", "message" => "IOError: order is gone", "cause" => "IOError")
      expect(seen).to eq(["order is gone"])
    end

    [true, false].each do |block|
      it "fails for good when the attempts of retry_on are used up, #{block ? 'with' : 'without'} a block" do
        all = seen
        active_job do
          retry_on(IOError, attempts: 2, &(block ? ->(_job, error) { all << error.message } : nil))
          define_method(:perform) { |*| raise IOError, "closed" }
        end
        step = dispatch("InvoiceJob", attempt: 2)
        performed(step)

        expect(step.failure).to include("permanent" => true, "code" => "retries_stopped", "message" => "IOError: closed")
        expect(seen).to eq(block ? ["closed"] : [])
      end
    end

    it "is done when rescue_from has handled the error" do
      active_job do
        rescue_from(IOError) { |_error| "handled" }
        define_method(:perform) { |*| raise IOError, "closed" }
      end
      step = dispatch("InvoiceJob")
      perform(step)

      expect([step.state, step.result]).to eq(["complete", nil])
    end

    it "fails with any other error" do
      active_job { define_method(:perform) { |*| raise ArgumentError, "no" } }
      step = dispatch("InvoiceJob")

      expect(performed(step)).to be_a(ArgumentError)
      expect(step.failure).to include("class" => "ArgumentError", "permanent" => false)
    end
  end

  describe "arguments" do
    def arguments(config, context: { "order" => { "lines" => [{ "sku" => "a.b" }] }, "gid" => "gid://spec/Account/7" })
      all = seen
      active_job { define_method(:perform) { |*values, **keywords| (all << values << keywords) && nil } }
      step = dispatch_with(config, "InvoiceJob", context:, dependencies: { "v1.reserve" => { "id" => 9 }, "v1" => 1 }, others: { "far" => "away" })
      [step, performed(step)]
    end

    it "come from the context, results, the task and the step" do
      step, error = arguments({ arguments: ["$.context.order.lines.0.sku", "$.results.v1.reserve.id", "$.results.v1", "$.results.far", "$.task_id",
                                            "$.step_id", "$.attempt", "$.correlation_id", 3, nil, { at: ["$.context.order.lines"] }] })

      expect(error).to be_nil
      expect(seen.first).to eq(["a.b", 9, 1, "away", step.task_id, step.step_id, 1, nil, 3, nil, { "at" => [[{ "sku" => "a.b" }]] }])
    end

    describe "that are records" do
      before do
        stub_const("Account", Struct.new(:id) do
          include GlobalID::Identification

          def self.find(id) = new(id.to_i)
        end)
      end

      it "are found by the class that the template names" do
        arguments({ arguments: [{ record: "$.context.gid", class: "Account" }, [{ record: "$.context.gid", class: %w[Order Account] }]] })

        expect(seen.first).to eq([Account.new(7), [Account.new(7)]])
      end

      it "are found by a class that the configuration names" do
        use_test_database(record_classes: [Account])
        arguments({ arguments: [{ record: "$.context.gid" }] })

        expect(seen.first).to eq([Account.new(7)])
        expect { use_test_database(record_classes: "Account") }.to raise_error(TaskerCore::ConfigurationError, /record_classes must be names/)
      end

      it "are of no class that the context alone names, and no constant is looked up for it" do
        asked = []
        stub_const("Account", Class.new { define_singleton_method(:find) { |id| asked << id } })
        { {} => /no class is allowed: write \{record: …, class: Account\}/, { class: "Order" } => /only Order are allowed/,
          { class: "$.context.class" } => /only \$\.context\.class are allowed/ }.each do |allowed, message|
          step, = arguments({ arguments: [{ record: "$.context.gid", **allowed }] }, context: { gid: "gid://spec/Account/7", class: "Account" })

          expect(step.failure).to include("permanent" => true, "code" => "arguments_unresolvable", "message" => message)
        end
        step, = arguments({ arguments: [{ record: "$.context.gid", class: "Account" }] }, context: { gid: "gid://spec/Not::Loaded/7" })
        expect(step.failure).to include("message" => /is a record of Not::Loaded/)
        expect([asked, seen]).to eq([[], []])
      end
    end

    {
      { arguments: ["$.context.order.line"] } => /\$\.context\.order\.line: there is no line in \["lines"\]/,
      { arguments: ["$.context.order.lines.1"] } => /there is no 1 in Array/,
      { arguments: ["$.results.ship"] } => /\$\.results\.ship: the task has no step "ship"/,
      { arguments: ["$.env.SECRET"] } => /\$\.env\.SECRET begins with none of context, results/,
      { arguments: "$.context" } => /handler_config\.arguments must be a list/,
      { keywords: [1] } => /handler_config\.keywords must be a mapping/,
      { arguments: [{ record: "$.context.order" }] } => /not a GlobalID such as/
    }.each do |config, message|
      it "fail for good when they are #{config}" do
        step, = arguments(config)

        expect(step.failure).to include("permanent" => true, "code" => "arguments_unresolvable", "message" => message)
        expect(step.failure["message"]).to start_with("arguments of InvoiceJob in step work: ")
        expect(seen).to be_empty
      end
    end
  end
end
