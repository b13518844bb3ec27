# frozen_string_literal: true

RSpec.describe TaskerCore::SecretFilter do
  subject(:filter) { described_class.new(described_class::DEFAULTS) }

  {
    "could not connect to postgres://app:s3cret@db:5432/shop" => "could not connect to postgres://app:[FILTERED]@db:5432/shop",
    "redis://:s3cret@cache:6379" => "redis://:[FILTERED]@cache:6379",
    "refused: Authorization: Bearer eyJhbGciOi.J9.x-y_z" => "refused: Authorization: Bearer [FILTERED]",
    "GET https://api.example/v1?page=2&api_key=abc123&x=1" => "GET https://api.example/v1?page=2&api_key=[FILTERED]&x=1",
    "host=db password=s3cret dbname=shop" => "host=db password=[FILTERED] dbname=shop",
    'answered {"access_token": "abc def", "ok": true}' => 'answered {"access_token": "[FILTERED]", "ok": true}',
    '{:password=>"s3cret", "card"=>1}' => '{:password=>"[FILTERED]", "card"=>1}',
    '{password: "s3cret"}' => '{password: "[FILTERED]"}',
    "X-Api-Key='abc'" => "X-Api-Key='[FILTERED]'"
  }.each do |text, masked|
    it "makes #{masked.inspect} of a text" do
      expect(filter.text(text)).to eq(masked)
    end
  end

  ["see https://example.com/a:b/c@d", "ssh://git@github.com/x", "unexpected token at 'x'", "the password was wrong", "Order 5: 12 € are missing"].each do |text|
    it "leaves #{text.inspect} alone" do
      expect(filter.text(text)).to eq(text)
    end
  end

  it "takes no longer for a text that looks like nothing but names" do
    text = "token" * 4_000

    expect { Timeout.timeout(2) { filter.text(text) } }.not_to raise_error
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

  it "does nothing without filters but look for passwords in URLs and bearer tokens" do
    expect(described_class.new([]).text("token=abc at http://u:p@host")).to eq("token=abc at http://u:[FILTERED]@host")
  end
end
