# frozen_string_literal: true

require "fileutils"
require "open3"
require "rbconfig"
require "tmpdir"

RSpec.describe "The registry in a Rails app" do
  # Of the app, run in a process of its own.
  let(:script) { <<~'RUBY' }
    require "rails"
    require "tasker_core"

    class App < Rails::Application
      config.root = ARGV.fetch(0)
      config.eager_load = false
      config.cache_classes = false
      config.logger = Logger.new(nil)
    end
    App.initialize!

    registry = TaskerCore::TaskHandlerRegistry.new
    say = lambda do
      handler = registry.handler_for(name: "refund")
      puts [handler.class, handler.class.const_get(:TEXT), handler.version, App.reloaders.any?(&:updated?)].join(" ")
    end
    say.call

    File.write("#{Rails.root}/config/tasker/tasks/refund.yaml", "name: refund\nversion: 2.0.0\ntask_handler_class: Refund\n")
    puts App.reloaders.any?(&:updated?)
    File.write("#{Rails.root}/app/handlers/refund.rb", "class Refund < TaskerCore::BaseTaskHandler\n  TEXT = :new\nend\n")
    # No later than what Rails has just seen: else there would be more to reload afterwards.
    File.utime(*[File.mtime("#{Rails.root}/config/tasker/tasks/refund.yaml")] * 2, "#{Rails.root}/app/handlers/refund.rb")
    App.reloader.reload!
    say.call
  RUBY

  def file(path, text)
    FileUtils.mkdir_p(File.dirname(path))
    File.write(path, text)
    File.utime(Time.now - 60, Time.now - 60, path)
  end

  it "reads templates of the app's folder, and again with the code" do
    Dir.mktmpdir do |root|
      file("#{root}/config/tasker/tasks/refund.yaml", "name: refund\nversion: 1.0.0\ntask_handler_class: Refund\n")
      file("#{root}/app/handlers/refund.rb", "class Refund < TaskerCore::BaseTaskHandler\n  TEXT = :old\nend\n")
      output, status = Open3.capture2e({ "RAILS_ENV" => "development" }, RbConfig.ruby, "-W0", "-I", File.expand_path("../lib", __dir__), "-e", script, root)

      expect(output).to eq("Refund old 1.0.0 false\ntrue\nRefund new 2.0.0 false\n")
      expect(status).to be_success
    end
  end
end
