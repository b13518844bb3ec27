# frozen_string_literal: true

RSpec.describe TaskerCore::Configuration do
  subject(:config) { described_class.new }

  it "takes many settings at once" do
    config.update({ pool_size: 7, "log_tags" => false })

    expect(config).to have_attributes(pool_size: 7, log_tags: false)
  end

  it "names a setting that there is not, where it was set, and the near one" do
    expect { config.update({ pool_sise: 7 }, called: "config.tasker") }
      .to raise_error(TaskerCore::ConfigurationError, /\Aconfig\.tasker\.pool_sise is no setting; did you mean pool_size\? – there are: adopt_jobs, /)
    expect { config.update({ colour: 7 }) }.to raise_error(TaskerCore::ConfigurationError, /\ATaskerCore\.config\.colour is no setting – there are/)
  end

  { pool_size: 0, report_timeout: "7", start_timeout: -1 }.each do |name, value|
    it "refuses #{name} #{value.inspect}" do
      config.update({ name => value })

      expect { config.validate! }.to raise_error(TaskerCore::ConfigurationError, /\A#{name} must be .*, not #{value.inspect}\z/)
    end
  end
end
