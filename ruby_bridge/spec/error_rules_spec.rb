# frozen_string_literal: true

RSpec.describe TaskerCore::ErrorRules do
  before do
    stub_const("GatewayError", Class.new(StandardError))
    stub_const("Declined", Class.new(GatewayError))
    stub_const("Charge", Class.new(TaskerCore::BaseStepHandler) do
      permanent_error "GatewayError", code: :gateway
      retryable_error Timeout::Error
    end)
  end

  def permanent?(error, handler: "Charge", permanent: []) = described_class.decide(error, handler:, permanent:).permanent

  it "is permanent for nothing by default" do
    [StandardError, ArgumentError, NoMethodError, NotImplementedError].each { |error| expect(permanent?(error.new)).to be(false) }
  end

  it "holds for subclasses of the class that was named" do
    expect(described_class.decide(Declined.new, handler: "Charge")).to have_attributes(permanent: true, code: "gateway")
  end

  it "takes the rule for the class nearest to the error's own" do
    Charge.retryable_error(Declined)

    expect([permanent?(Declined.new), permanent?(GatewayError.new)]).to eq([false, true])
  end

  it "prefers a handler to its superclass, and both to the configuration" do
    stub_const("Refund", Class.new(Charge) { retryable_error GatewayError })

    expect(permanent?(GatewayError.new, handler: "Refund")).to be(false)
    expect(permanent?(GatewayError.new)).to be(true) # the superclass is as it was
    expect(permanent?(Timeout::Error.new, permanent: ["Timeout::Error"])).to be(false)
    expect(permanent?(IOError.new, permanent: [IOError])).to be(true)
  end

  it "leaves the two errors that say it themselves alone" do
    Charge.permanent_error(StandardError)

    expect(permanent?(TaskerCore::RetryableError.new)).to be(false)
    expect(permanent?(TaskerCore::PermanentError.new)).to be(true)
  end

  it "knows a class again that was reloaded" do
    stub_const("Declined", Class.new(StandardError))
    Charge.permanent_error(Declined)
    stub_const("Declined", Class.new(StandardError))

    expect(permanent?(Declined.new)).to be(true)
  end

  it "does without a handler that can't be found" do
    expect(permanent?(GatewayError.new, handler: "Nowhere")).to be(false)
    expect(permanent?(GatewayError.new, handler: nil, permanent: ["::GatewayError"])).to be(true)
  end

  it "says what can't be a rule" do
    expect { Charge.permanent_error }.to raise_error(TaskerCore::ConfigurationError, /name the errors/)
    expect { Charge.permanent_error(Class.new) }.to raise_error(TaskerCore::ConfigurationError, /is no class of errors/)
    expect { use_test_database(permanent_errors: ["not a class"]) }.to raise_error(TaskerCore::ConfigurationError, /"not a class" is no class/)
  end

  it "decides what is reported of a failed attempt" do
    stub_const("Charge", Class.new(TaskerCore::BaseStepHandler) do
      permanent_error "Declined", code: "declined"
      def process(_task, _sequence, _step) = raise(Declined, "no money")
    end)
    use_test_database
    step = dispatch("Charge")

    expect { perform(step) }.to raise_error(Declined)
    expect(step.failure).to include("class" => "Declined", "permanent" => true, "code" => "declined")
  end
end
