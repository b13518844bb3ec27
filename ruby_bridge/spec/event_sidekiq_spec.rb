# frozen_string_literal: true

RSpec.describe "Subscribers of events in the sidekiq process" do
  include EventHelpers

  def audited
    rows = TestDatabase.connection.exec("SELECT data FROM tasker.events WHERE name = 'shop.audited' ORDER BY event_id")
    rows.map { |row| JSON.parse(row["data"]) }
  end

  let(:env) { { "TASKER_DATABASE_URL" => nil, "DATABASE_URL" => nil, "SHOP_DATABASE_URL" => TestDatabase.url } }

  it "run in a Rails app that asks for it, found in its folders, and leave politely" do
    SidekiqProcess.run("rails", env: env.merge("SPEC_EVENTS" => "1")) do |sidekiq|
      ids = Array.new(2) { write_event("shop.sold") }
      eventually("both are audited:\n#{sidekiq.output}") { audited.size == 2 }
      expect(audited).to eq(ids.map { |id| { "of" => id, "busy" => 1 } })

      sidekiq.term
      sidekiq.wait_for_end
      expect(lag_of("audit")).to include("holder" => nil)
    end
  end

  it "don't run unasked" do
    SidekiqProcess.run("rails", env:) { |sidekiq| expect(sidekiq.registration).not_to be_nil }

    expect(TestDatabase.connection.exec("SELECT FROM tasker.event_subscribers").ntuples).to eq(0)
  end
end
