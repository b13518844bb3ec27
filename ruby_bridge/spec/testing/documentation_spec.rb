# frozen_string_literal: true

require "fileutils"
require "open3"
require "tmpdir"

# The examples of docs/testing.md are the files of an app, and run as such.
RSpec.describe "docs/testing.md" do
  let(:blocks) do
    text = File.read(File.expand_path("../../../docs/testing.md", __dir__))
    text.scan(/^```(?:ruby|yaml)\n(.*?)^```/m).to_h { |block,| [block[/\A# (\S+)$/, 1], block] }
  end
  let(:app) do
    Dir.mktmpdir.tap do |folder|
      blocks.each do |name, block|
        FileUtils.mkdir_p(File.dirname(File.join(folder, name)))
        File.write(File.join(folder, name), block)
      end
    end
  end

  def run_in_app(*command, **more)
    env = { "REDIS_URL" => TestRedis.take, "TASKER_BINARY" => ENV.fetch("TASKER_BIN"), "RUBYLIB" => File.expand_path("../../lib", __dir__),
            "TASKER_REDIS_URL" => nil, "TASKER_ENV" => nil, "RAILS_ENV" => nil, **more.transform_keys(&:name) }
    Open3.capture2e(env, *command, chdir: app)
  end

  it "has examples that work" do
    TestDatabase.separate do |url|
      output, status = run_in_app("rspec", "-r", "tasker_core", "-r", "./app/handlers/orders.rb", "spec", TASKER_DATABASE_URL: url)

      expect([status.success?, output]).to match([true, /^9 examples, 0 failures/])
    end
  end

  it "has examples for Minitest that Ruby can read" do
    output, = run_in_app(RbConfig.ruby, "-c", "test/charge_test.rb")

    expect(output).to eq("Syntax OK\n")
  end
end
