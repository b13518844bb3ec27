# frozen_string_literal: true

require "active_record"

RSpec.describe TaskerCore::ErrorMapping do
  def raising(sqlstate) = "DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '#{sqlstate}', HINT = 'do it so'; END $$"

  def raised
    yield
    nil
  rescue StandardError => e
    e
  end

  def codes_in_sql
    Dir[File.join(Contract::FOLDER, "../migrations/sql/*.up.sql")].flat_map { |file| File.read(file).scan(/ERRCODE\s*=\s*'(TK\w{3})'/) }.flatten.uniq
  end

  it "knows every code that the migrations raise" do
    expect(codes_in_sql).to match_array(contract("errors")["sqlstates"].map { |row| row["sqlstate"] }.grep(/\ATK/))
  end

  JSON.parse(File.read(File.join(Contract::FOLDER, "errors.json")))["sqlstates"].each do |row|
    it "makes #{row['ruby'].empty? ? 'nothing' : row['ruby']} of SQLSTATE #{row['sqlstate']}" do
      error = raised { TestDatabase.connection.exec(raising(row["sqlstate"])) }
      translated = described_class.translate(error)

      expect(translated.class.name).to eq(row["ruby"].empty? ? "NilClass" : row["ruby"])
      expect(translated).to have_attributes(message: "no – do it so", sqlstate: row["sqlstate"]) if translated
    end
  end

  it "finds PG's error behind ActiveRecord's, and behind the gem's own" do
    ActiveRecord::Base.establish_connection(TestDatabase.url)
    use_test_database
    of_record = raised { ActiveRecord::Base.connection.execute(raising("TK008")) }
    of_gem = raised { TaskerCore.database.exec(raising("TK008")) }

    expect([of_record, of_gem].map { |error| described_class.translate(error) }).to all(be_a(TaskerCore::StateTransitionError))
    expect(of_gem).to be_a(TaskerCore::DatabaseError)
  ensure
    ActiveRecord::Base.remove_connection
  end

  it "makes nothing of what is no error of the database" do
    expect(described_class.translate(IOError.new)).to be_nil
    expect(described_class.translate(PG::ConnectionBad.new("gone"))).to be_nil
  end

  contract_failures = JSON.parse(File.read(File.join(Contract::FOLDER, "errors.json")))["failures"]
  contract_failures.each do |row|
    it "makes #{row['ruby']} of a failure with the code #{row['code']}" do
      error = described_class.error_of({ "message" => "no", "backtrace" => ["a.rb:1"], **row.slice("code", "permanent") })

      expect(error).to have_attributes(class: Object.const_get(row["ruby"]), message: "no", backtrace: ["a.rb:1"])
    end
  end

  it "gives back the errors that a handler raised" do
    declined = TaskerCore::FailureRecord.new(TaskerCore::PermanentError.new("declined", error_code: "funds", context: { a: 1 }), handler: "X").to_h
    busy = TaskerCore::FailureRecord.new(TaskerCore::RetryableError.new("busy", retry_after: 7), handler: "X").to_h

    expect(described_class.error_of(declined)).to be_a(TaskerCore::PermanentError)
      .and have_attributes(message: "declined", error_code: "funds", context: { "a" => 1 })
    expect(described_class.error_of(busy)).to be_a(TaskerCore::RetryableError).and have_attributes(message: "busy", retry_after: 7)
    expect(described_class.error_of(nil)).to be_nil
  end

  it "keeps the code of each of the gem's errors that has one" do
    [TaskerCore::HandlerNotFoundError, TaskerCore::ResultNotSerializableError, TaskerCore::ResultTooLargeError].each do |error|
      code = TaskerCore::FailureRecord.new(error.new("no"), handler: nil).to_h["code"]
      expect(contract_failures.find { |row| row["code"] == code }["ruby"]).to eq(error.name)
    end
  end

  it "has one root" do
    errors = TaskerCore.constants.map { |name| TaskerCore.const_get(name) }.select { |constant| constant.is_a?(Class) && constant < StandardError }

    expect(errors - [TaskerCore::Error]).to all(be < TaskerCore::Error)
    expect(TaskerCore::TaskRefusedError.ancestors).to include(TaskerCore::ValidationError, TaskerCore::OrchestrationError)
  end
end
