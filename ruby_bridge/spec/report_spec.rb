# frozen_string_literal: true

RSpec.describe TaskerCore::Report do
  let(:reports) { contract("reports") }

  it "says success as the contract does" do
    json = TaskerCore::ResultJson.dump({ charge_id: "ch_1", amount: 1999 })

    expect(JSON.parse(described_class.success(42, 1, json, 42_000_126))).to eq(reports[0])
  end

  it "says failure as the contract does" do
    expect(JSON.parse(described_class.failure(44, 1, reports[2]["failure"], 44_000_132))).to eq(reports[2])
  end

  it "says lost as the contract does" do
    expect(JSON.parse(described_class.lost(45, 3, 45_000_135))).to eq(reports[3])
  end
end
