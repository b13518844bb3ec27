# frozen_string_literal: true

require "bigdecimal"
require "date"

# docs/ruby.md has the table; the Go tests read the fixture too.
RSpec.describe "What crosses from one language to the other" do
  def self.rows(language) = JSON.parse(File.read(File.join(Contract::FOLDER, "types.json"))).fetch(language)

  def built(value)
    type, form = value.first
    case type
    when "Integer" then Integer(form)
    when "Float" then { "NaN" => Float::NAN, "-Infinity" => -Float::INFINITY }.fetch(form) { Float(form) }
    when "String", "true", "false", "nil" then form
    when "Bytes" then [form].pack("H*")
    when "Symbol" then form.to_sym
    when "Time" then Time.iso8601(form)
    when "Date" then Date.iso8601(form)
    when "BigDecimal" then BigDecimal(form)
    when "Array" then form.map { |member| built(member) }
    when "Hash" then form.transform_values { |member| built(member) }
    when "TwiceKeyed" then { form => 1, form.to_sym => 2 }
    when "Levels" then (form - 1).times.reduce([]) { |inner, _| [inner] }
    when "Range" then 1..2
    else raise "the fixture has the unknown type #{type}"
    end
  end

  # As jsonb gives it back.
  def stored(json) = TestDatabase.value("SELECT $1::jsonb", json)

  def read(json) = JSON.parse("[#{json}]", max_nesting: false).first

  rows("ruby").each do |row|
    if row["refused"]
      it "refuses #{row['what']}" do
        expect { TaskerCore::ResultJson.dump(built(row["value"])) }
          .to raise_error(TaskerCore::ResultNotSerializableError) { |error| expect(error.message).to end_with(row["refused"]) }
      end
    else
      it "carries #{row['what']}" do
        value = built(row["value"])
        json = TaskerCore::ResultJson.dump(value)
        back = stored(json)

        expect(json).to eq(row["json"]) if row["json"]
        expect(back).to eq(row["back"]) if row["back"]
        expect(read(back).class.name).to eq(row["reads"])
        value.is_a?(Float) ? expect(read(back).to_f).to(eq(value)) : expect(read(back)).to(eq(read(json)))
      end
    end
  end

  rows("go").each do |row|
    it "reads Go's #{row['type']}" do
      back = stored(row["json"])

      expect(back).to eq(row["back"])
      expect(read(back).class.name).to eq(row["reads"])
    end
  end

  it "carries them through an attempt: what one step returns the next one is given" do
    rows = contract("types")["ruby"].reject { |row| row["refused"] || row["value"].key?("Levels") }
    values = rows.to_h { |row| [row["what"], built(row["value"])] }
    stub_const("Give", Class.new(TaskerCore::BaseStepHandler) { define_method(:process) { |_task, _sequence, _step| values } })
    seen = nil
    stub_const("Take", Class.new(TaskerCore::BaseStepHandler) do
      define_method(:process) { |task, sequence, _step| seen = [task.context, sequence.results_of(:given)] }
    end)
    use_test_database
    perform(given = dispatch("Give"))
    perform(dispatch("Take", context: given.result, dependencies: { "given" => given.result }))

    expected = rows.to_h { |row| [row["what"], read(stored(row["json"]))] }
    expect(seen).to eq([expected, expected])
  end
end
