# frozen_string_literal: true

require "bigdecimal"
require "date"
require "set"

RSpec.describe TaskerCore::JsonTree do
  def refusal(value)
    described_class.build(value)
    nil
  rescue described_class::Refused => e
    e.message
  end

  it "gives JSON values back as they are" do
    value = { "a" => [1, 2.5, -0.0, "ünïcode ✓ 🎉", true, false, nil], "b" => {}, "" => [], "big" => 10**40 }

    expect(described_class.build(value)).to eq(value)
    expect(JSON.parse(JSON.generate(described_class.build(value)))).to eq(value)
  end

  it "makes strings of symbols, times, dates and decimals" do
    time = Time.new(2026, 11, 23, 10, 0, 0.123456r, "+01:00")

    expect(described_class.build({ state: :paid, at: time, day: Date.new(2026, 11, 23), price: BigDecimal("1234567.10"),
                                   stamp: DateTime.new(2026, 11, 23, 10, 0, 0, "+01:00") }))
      .to eq("state" => "paid", "at" => "2026-11-23T09:00:00.123456Z", "day" => "2026-11-23", "price" => "1234567.1",
             "stamp" => "2026-11-23T09:00:00.000000Z")
  end

  it "takes text in any encoding, and bytes that are UTF-8" do
    expect(described_class.build(["grün".encode("ISO-8859-1"), "grün".b, "grün".encode("UTF-16LE")])).to eq(%w[grün grün grün])
  end

  it "makes plain strings and hashes of their subclasses" do
    string = Class.new(String).new("safe")
    hash = Class.new(Hash).new.merge("a" => string)

    expect(described_class.build(hash)["a"]).to be_an_instance_of(String)
    expect(described_class.build(hash)).to be_an_instance_of(Hash)
  end

  it "leaves what it was given alone" do
    value = { at: Time.at(0), list: [:a].freeze }.freeze

    expect { described_class.build(value) }.not_to(change { value.inspect })
  end

  {
    "NaN" => [{ items: [1, { price: Float::NAN }] }, "$.items[1].price is NaN"],
    "Infinity" => [[-Float::INFINITY], "$[0] is -Infinity"],
    "a decimal that is no number" => [BigDecimal("NaN"), "$ is NaN"],
    "NUL" => [{ "note" => "a\0b" }, "$.note contains a NUL character"],
    "invalid UTF-8" => [{ "unit price" => ["\xFF"] }, '$["unit price"][0] is not valid UTF-8'],
    "bytes" => ["\x89PNG".b, "$ is not valid UTF-8"],
    "an object" => [{ order: Object.new }, "$.order is a Object"],
    "a Set" => [Set[1], "$ is a Set"],
    "a Rational" => [[1r], "$[0] is a Rational"],
    "a key that is a number" => [{ totals: { 7 => 1 } }, "$.totals has the key 7 of class Integer"],
    "a key with NUL" => [{ "a\0" => 1 }, "$ has a key that contains a NUL character"],
    "a key that is there as String and Symbol" => [{ "a" => 1, a: 2 }, "$.a is there twice"]
  }.each do |what, (value, message)|
    it "refuses #{what} and says where it is" do
      expect(refusal(value)).to start_with(message)
    end
  end

  it "refuses what contains itself" do
    list = []
    list << list << list

    expect(refusal(list)).to include("nested deeper than 96 levels")
  end

  it "allows what is nested as deep as it can be read" do
    value = 95.times.reduce([]) { |inner, _| [inner] }

    expect(JSON.parse(JSON.generate(described_class.build(value)))).to eq(value)
  end
end

RSpec.describe TaskerCore::ForgivingJsonTree do
  it "shows what can't be JSON as Ruby does" do
    tree = described_class.build({ set: Set[1], nan: Float::NAN, bytes: "a\xFF\0b", 7 => :seven, deep: { object: 1..2 } })

    expect(tree).to eq("set" => Set[1].inspect, "nan" => "NaN", "bytes" => "a\u{FFFD}b", "7" => "seven", "deep" => { "object" => "1..2" })
  end

  it "survives objects that can't be shown" do
    rude = Class.new { def inspect = raise("no") }.new

    expect(described_class.build([rude]).first).to start_with("#<#<Class")
  end
end
