# frozen_string_literal: true

require "tmpdir"

RSpec.describe TaskerCore::HandlerLookup do
  before do
    stub_const("Orders", Module.new)
    stub_const("Orders::Charge", Class.new(TaskerCore::BaseStepHandler))
    stub_const("Orders::Helper", Class.new)
  end

  it "finds a handler by its name" do
    expect(described_class.find("Orders::Charge")).to equal(Orders::Charge)
    expect(described_class.find("::Orders::Charge")).to equal(Orders::Charge)
  end

  ["Orders::Refund", "Nowhere::Charge", "orders", "Orders::", "Orders.new", "system('ls')", "", nil, "Orders::Charge\nFile"].each do |name|
    it "finds nothing under #{name.inspect}, and says what to do" do
      expect { described_class.find(name) }
        .to raise_error(TaskerCore::HandlerNotFoundError, /no class #{Regexp.escape(name.to_s)} in this Sidekiq process.*handler_class in the template/m)
    end
  end

  it "says where a Rails app would define it" do
    expect { described_class.find("Orders::SendHTMLMail") }.to raise_error(%r{app/handlers/orders/send_htmlmail\.rb})
  end

  %w[Kernel File Orders Orders::Helper RUBY_VERSION TaskerCore::BaseStepHandler TaskerCore::StepJob].each do |name|
    it "refuses #{name}, which is no handler" do
      expect { described_class.find(name) }
        .to raise_error(TaskerCore::HandlerNotFoundError, /#{name} is not a step handler: let it inherit/)
    end
  end

  it "doesn't blame the template for a fault in the handler's file" do
    Dir.mktmpdir do |folder|
      File.write("#{folder}/refund.rb", "class Orders::Refund < TaskerCore::BaseStepHandler\n  LIMIT = MissingConstant\nend\n")
      Orders.autoload(:Refund, "#{folder}/refund.rb")

      expect { described_class.find("Orders::Refund") }.to raise_error(NameError, /MissingConstant/)
    end
  end
end
