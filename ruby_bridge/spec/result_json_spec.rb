# frozen_string_literal: true

RSpec.describe TaskerCore::ResultJson do
  it "is JSON text" do
    expect(described_class.dump({ amount: 1999, tags: [:web] })).to eq('{"amount":1999,"tags":["web"]}')
    expect(described_class.dump(nil)).to eq("null")
    expect(described_class.dump("text")).to eq('"text"')
  end

  it "names the place of what is not JSON" do
    expect { described_class.dump({ items: [0, 1, 2, { price: Float::NAN }] }) }
      .to raise_error(TaskerCore::ResultNotSerializableError, /\$\.items\[3\]\.price is NaN/) { |e| expect(e.error_code).to eq("result_not_serializable") }
  end

  it "allows 4 MiB and not a byte more" do
    largest = "x" * (described_class::LIMIT_BYTES - 2) # and two quotes

    expect(described_class.dump(largest).bytesize).to eq(4_194_304)
    expect { described_class.dump("#{largest}x") }.to raise_error(TaskerCore::ResultTooLargeError, /4194305 bytes/)
  end

  it "names the place where a large result is large" do
    result = { small: "x" * 1_000_000, pages: [{ html: "x" * 500_000 }, { html: "x" * 4_000_000 }] }

    expect { described_class.dump(result) }
      .to raise_error(TaskerCore::ResultTooLargeError, /most of it is in \$\.pages\[1\]\.html/) { |e| expect(e.error_code).to eq("result_too_large") }
  end
end
