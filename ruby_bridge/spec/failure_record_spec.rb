# frozen_string_literal: true

RSpec.describe TaskerCore::FailureRecord do
  def raised
    yield
  rescue Exception => e # rubocop:disable Lint/RescueException
    e
  end

  def record(error = nil, &) = described_class.new(error || raised(&), handler: "Orders::Charge").to_h

  it "has the members of the contract, and no others" do
    known = contract("reports").filter_map { |report| report["failure"]&.keys }.flatten.uniq
    error = raised do
      raise IOError, "closed"
    rescue IOError
      raise TaskerCore::RetryableError.new("try again", retry_after: 1, context: { a: 1 })
    end

    expect(record(error).keys | record(TaskerCore::PermanentError.new("no", error_code: "no")).keys).to match_array(known)
  end

  it "tells class, message, backtrace, cause and handler" do
    failure = record do
      raise IOError, "closed"
    rescue IOError
      raise ArgumentError, "amount is missing"
    end

    expect(failure).to include("class" => "ArgumentError", "message" => "amount is missing", "cause" => "IOError",
                               "permanent" => false, "handler" => "Orders::Charge")
    expect(failure["backtrace"].first).to include("failure_record_spec.rb")
    expect(failure).not_to include("code", "retry_after", "context")
  end

  it "keeps the first 50 lines of the backtrace" do
    error = RuntimeError.new("deep").tap { |e| e.set_backtrace(Array.new(80) { |n| "line #{n}" }) }

    expect(record(error)["backtrace"]).to eq(Array.new(50) { |n| "line #{n}" })
  end

  it "does without a backtrace" do
    expect(record(RuntimeError.new("never raised"))["backtrace"]).to eq([])
  end

  it "makes text of any message that Postgres can take" do
    expect(record(RuntimeError.new("caf\xE9 \0".b))["message"]).to eq("caf\u{FFFD} ")
    expect(record(RuntimeError.new("grün".encode("ISO-8859-1")))["message"]).to eq("grün")
    expect(record(RuntimeError.new("x" * 20_000))["message"].length).to eq(10_000)
  end

  it "bears an error whose message raises" do
    rude = Class.new(StandardError) { def message = raise("no") }

    expect(record(rude.new)["message"]).to eq("(its message raised RuntimeError)")
    expect(record(rude.new)["class"]).to start_with("#<Class")
  end

  it "keeps what an error is given besides, whatever its name" do
    permanent = record { raise TaskerCore::PermanentError.new("no", error_code: "E", error_category: "validation", context: { field: "iban" }) }
    retryable = record { raise TaskerCore::RetryableError.new("later", error_category: "network") }

    expect(permanent).to include("code" => "E", "permanent" => true, "context" => { "field" => "iban", "error_category" => "validation" })
    expect(retryable).to include("permanent" => false, "context" => { "error_category" => "network" })
  end

  it "takes points in time of any class" do
    at = Time.utc(2026, 10, 21, 7, 28)
    points = [at, at.to_datetime, DateTime.new(2026, 10, 21, 9, 28, 0, "+02:00")]
    expect(points.map { |point| record(TaskerCore::RetryableError.new(retry_after: point))["retry_after"] }).to all(eq("Wed, 21 Oct 2026 07:28:00 GMT"))
  end

  it "takes the delay that a RetryableError asks for" do
    delays = [30, 1.5, 0, "120", "Wed, 21 Oct 2026 07:28:00 GMT", Time.utc(2026, 10, 21, 7, 28), nil, -1, Float::NAN, Object.new]

    expect(delays.map { |delay| record(TaskerCore::RetryableError.new("later", retry_after: delay))["retry_after"] })
      .to eq([30, 1.5, 0, "120", "Wed, 21 Oct 2026 07:28:00 GMT", "Wed, 21 Oct 2026 07:28:00 GMT", nil, nil, nil, nil])
  end

  it "takes code and context of a PermanentError" do
    failure = record(TaskerCore::PermanentError.new("declined", error_code: :card_declined, context: { reason: "funds", raw: Object }))

    expect(failure).to include("permanent" => true, "code" => "card_declined", "context" => { "reason" => "funds", "raw" => "Object" })
  end

  it "leaves out a context that is too large" do
    failure = record(TaskerCore::PermanentError.new("declined", context: { body: Array.new(100) { "x" * 1_000 } }))

    expect(failure["context"]["omitted"]).to match(/\A\d+ bytes of context, 65536 are kept\z/)
  end

  it "masks secrets in message and context" do
    failure = record(TaskerCore::RetryableError.new("can't reach amqp://shop:s3cret@mq", context: { headers: { "Authorization" => "Basic x" }, id: 5 }))

    expect(failure).to include("message" => "can't reach amqp://shop:[FILTERED]@mq",
                               "context" => { "headers" => { "Authorization" => "[FILTERED]" }, "id" => 5 })
  end

  it "masks secrets in the backtrace and in the code" do
    error = TaskerCore::PermanentError.new("no", error_code: "password=hunter2").tap { |e| e.set_backtrace(["a.rb:1:in `x'", "run password: hunter2"]) }

    expect(record(error)).to include("code" => "password=[FILTERED]", "backtrace" => ["a.rb:1:in `x'", "run password: [FILTERED]"])
  end

  it "masks what the configuration names" do
    use_test_database(filter_parameters: [:iban])

    expect(record(TaskerCore::PermanentError.new("no", context: { iban: "DE1", token: "t" }))["context"]).to eq("iban" => "[FILTERED]", "token" => "t")
  end

  it "masks what Rails masks as well" do
    config = Struct.new(:filter_parameters).new([:iban])
    stub_const("Rails", Module.new { define_singleton_method(:application) { Struct.new(:config).new(config) } })

    expect(record(TaskerCore::PermanentError.new("no", context: { iban: "DE1", token: "t" }))["context"])
      .to eq("iban" => "[FILTERED]", "token" => "[FILTERED]")
  end

  it "survives messages in broken encodings" do
    expect(record(IOError.new("caf\xE9 token=abc".b))["message"]).to eq("caf\u{FFFD} token=[FILTERED]")
  end
end
