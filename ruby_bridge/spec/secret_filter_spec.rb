# frozen_string_literal: true

require "json"
require "timeout"

RSpec.describe TaskerCore::SecretFilter do
  subject(:filter) { described_class.new(described_class::DEFAULTS) }

  examples = JSON.parse(File.read(File.join(Contract::FOLDER, "secrets.json")))

  # The engine's tests read the same file.
  examples["masked"].each do |text, masked|
    it "makes #{masked.inspect} of #{text.inspect}" do
      expect(filter.text(text)).to eq(masked)
      expect(filter.text(masked)).to eq(masked)
    end
  end

  examples["unchanged"].each do |text|
    it "leaves #{text.inspect} alone" do
      expect(filter.text(text)).to eq(text)
    end
  end

  examples["trees"].each do |tree, masked|
    it "makes #{masked.inspect} of a tree" do
      expect(filter.tree(tree)).to eq(masked)
    end
  end

  # Each makes a filter with a careless pattern look at its end again and again.
  ["token", "eyJ", "eyJ.", "eyJaaaaaaaa.", "password=", "password: '", "password\\", "password\"=\"", "://", "://:", "http://a:", "://a:@",
   "4242 ", "4242-", "4", "-", "-----BEGIN PRIVATE KEY-----", "-----", "bearer ", "authorization:", "authorization: [", "authorization: is ",
   "?key=", "--password ", "cookie:", "token: [\"", "password=)))", "password==", "password=,password=,", "password=,a", " ", "é", "a=>"].each do |part|
    it "takes linear time for a megabyte of #{part.inspect}" do
      text = part * ((1 << 20) / part.bytesize)
      short = text.byteslice(0, 1 << 16).scrub("")

      expect { Timeout.timeout(30) { [text, "password=#{short}x", "password: \"#{short}"].each { |hostile| filter.text(hostile) } } }.not_to raise_error
    end
  end

  it "masks values by their names, at any depth, whatever they are" do
    tree = { "card" => { "CVV" => 123, "last4" => "4242" }, "calls" => [{ "X-Api-Key" => ["a"], "status" => 401 }], "user_password" => nil }

    expect(filter.tree(tree)).to eq("card" => { "CVV" => "[FILTERED]", "last4" => "4242" },
                                    "calls" => [{ "X-Api-Key" => "[FILTERED]", "status" => 401 }], "user_password" => "[FILTERED]")
  end

  it "masks what is in values that have an innocent name" do
    expect(filter.tree("url" => ["amqp://u:p@mq"])).to eq("url" => ["amqp://u:[FILTERED]@mq"])
  end

  it "takes filters of every kind that Rails has" do
    filter = described_class.new([:iban, /\Apin\z/, "bank.number", ->(name, value) { value.replace("*" * value.size) if name == "code" }])
    tree = { "IBAN" => "DE1", "pin" => 1, "spin" => 2, "bank" => { "number" => 3 }, "number" => 4, "code" => "abc" }

    expect(filter.tree(tree)).to eq("IBAN" => "[FILTERED]", "pin" => "[FILTERED]", "spin" => 2, "bank" => { "number" => "[FILTERED]" },
                                    "number" => 4, "code" => "***")
    expect(tree["code"]).to eq("abc")
  end

  it "masks what a filter of the application names, in texts too" do
    filter = described_class.new([*described_class::DEFAULTS, :token, /\Apin\z/])

    expect(filter.text("max_tokens: 4096, pin=1234, spin=1")).to eq("max_tokens: [FILTERED], pin=[FILTERED], spin=1")
    expect(filter.tree("max_tokens" => 4096)).to eq("max_tokens" => "[FILTERED]")
  end

  it "does nothing without filters but look for passwords in URLs and bearer tokens" do
    expect(described_class.new([]).text("token=abc at http://u:p@host")).to eq("token=abc at http://u:[FILTERED]@host")
  end
end
