# frozen_string_literal: true

RSpec.describe "The sidekiq process" do
  it "runs the job of the contract, as the engine pushes it" do
    SidekiqProcess.run("plain/boot.rb") do |sidekiq|
      step = dispatch("Orders::Charge")
      job = contract("sidekiq_job")["job"]
      job["args"] = [job["args"].first.merge("step_id" => step.step_id, "task_id" => step.task_id, "ticket" => step.ticket)]
      sidekiq.push_payload(JSON.generate(job.merge("queue" => "default")))

      eventually("the step is complete") { step.state == "complete" }
      expect(step.result).to match("charge_id" => "ch_5", "key" => /\Atasker-\h{12}-#{step.step_id}\z/)
      expect(sidekiq.registration["identity"]).to eq(sidekiq.redis.smembers("processes").first)
      expect(sidekiq.output).not_to include("deprecat")
    end
  end

  it "runs the handler once when the job comes twice" do
    SidekiqProcess.run("plain/boot.rb") do |sidekiq|
      step = dispatch("Orders::Charge")
      2.times { sidekiq.push(step) }
      eventually("both jobs are done") { sidekiq.processed == 2 }

      expect(sidekiq.redis.lrange("ran", 0, -1)).to eq(["#{step.step_id}:1"])
      expect(step.events).to eq(%w[step.handle step.completed])
    end
  end

  it "lives on after failures of all kinds, and tells the error handlers" do
    SidekiqProcess.run("plain/boot.rb") do |sidekiq|
      names = %w[Kernel File Orders::Declined Orders::Exits]
      failing = names.map { |name| dispatch(name) }
      failing.each { |step| sidekiq.push(step) }
      eventually("all have failed") { failing.all?(&:failure) }
      fine = dispatch("Orders::Charge")
      sidekiq.push(fine)
      eventually("the next one is complete") { fine.state == "complete" }

      expect(failing.map { |step| step.failure["code"] }).to eq(["handler_not_found", "handler_not_found", "card_declined", nil])
      expect(failing.last.failure).to include("class" => "SystemExit")
      errors = eventually("all errors are handled") { sidekiq.redis.lrange("errors", 0, -1).then { |all| all if all.size >= 4 } }
      expect(errors).to include("TaskerCore::PermanentError: card declined")
      expect(sidekiq.redis.zcard("retry") + sidekiq.redis.zcard("dead")).to eq(0)
    end
  end

  it "gives up what still runs when it is told to end, and leaves politely" do
    SidekiqProcess.run("plain/boot.rb", "-t", "1") do |sidekiq|
      steps = %w[Orders::Endless Orders::Wrapping].map { |name| dispatch(name) }
      steps.each { |step| sidekiq.push(step) }
      eventually("both run") { sidekiq.redis.llen("ran") == 2 }
      registration = sidekiq.registration
      sidekiq.term
      status = sidekiq.wait_for_end

      expect(status).to be_success
      expect(steps.map(&:failure)).to all(eq("lost" => true))
      expect(sidekiq.registration).to include("process_id" => registration["process_id"], "stopped_at" => be_a(String))
    end
  end

  it "connects again when Postgres has ended its connections" do
    SidekiqProcess.run("plain/boot.rb") do |sidekiq|
      2.times do
        step = dispatch("Orders::Charge")
        sidekiq.push(step)
        eventually("the step is complete") { step.state == "complete" }
        TestDatabase.terminate_gem
      end
    end
  end

  it "loads a Rails app that has the gem, and uses its database" do
    env = { "TASKER_DATABASE_URL" => nil, "DATABASE_URL" => nil, "SHOP_DATABASE_URL" => TestDatabase.url }
    SidekiqProcess.run("rails", env:) do |sidekiq|
      step = dispatch("Orders::Charge")
      sidekiq.push(step)
      eventually("the step is complete:\n#{sidekiq.output}") { step.state == "complete" }

      expect(step.result).to eq("database" => URI(TestDatabase.url).path.delete_prefix("/"), "order_id" => 5, "pool_size" => 3,
                                "at" => "1970-01-01T00:00:00.000000Z")
    end
  end
end
