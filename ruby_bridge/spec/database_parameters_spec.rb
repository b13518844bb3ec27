# frozen_string_literal: true

RSpec.describe TaskerCore::DatabaseParameters do
  around do |example|
    saved = ENV.to_h.slice("TASKER_DATABASE_URL", "DATABASE_URL")
    saved.each_key { |name| ENV.delete(name) }
    example.run
  ensure
    %w[TASKER_DATABASE_URL DATABASE_URL].each { |name| ENV[name] = saved[name] }
  end

  def database = described_class.current[:dbname]

  it "prefers the configuration to the environment, and tasker's variable to the app's" do
    ENV["DATABASE_URL"] = "postgres://localhost/app"
    expect(database).to eq("app")
    ENV["TASKER_DATABASE_URL"] = "postgres://localhost/tasker"
    expect(database).to eq("tasker")
    TaskerCore.config.database_url = "postgres://localhost/configured"
    expect(database).to eq("configured")
  end

  it "takes an empty variable for none" do
    ENV["TASKER_DATABASE_URL"] = ""
    ENV["DATABASE_URL"] = "postgres://localhost/app"

    expect(database).to eq("app")
  end

  it "says what to set when there is nothing" do
    hide_const("ActiveRecord")

    expect { described_class.current }.to raise_error(TaskerCore::ConfigurationError, /TASKER_DATABASE_URL/)
  end

  it "leaves out what only ActiveRecord understands" do
    parameters = described_class.from_url("postgis://me:s%40crt@db.example:5433/app?pool=10&sslmode=require&prepared_statements=false&options=-c%20jit%3Doff")

    expect(parameters).to eq(host: "db.example", port: "5433", user: "me", password: "s@crt", dbname: "app", sslmode: "require", options: "-c jit=off")
  end

  it "takes libpq's own form too" do
    expect(described_class.from_url("host=/run/postgresql dbname=app")).to eq(host: "/run/postgresql", dbname: "app")
  end

  it "calls itself tasker_core unless the URL has a name" do
    expect(described_class.current("postgres://localhost/app")[:application_name]).to eq("tasker_core")
    expect(described_class.current("postgres://localhost/app?application_name=shop")[:application_name]).to eq("shop")
  end

  it "doesn't repeat a URL that it can't read" do
    expect { described_class.from_url("mysql://me:secret@localhost/app") }
      .to raise_error(TaskerCore::ConfigurationError) { |e| expect(e.message).not_to include("secret") }
  end
end
