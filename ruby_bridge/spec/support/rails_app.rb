# frozen_string_literal: true

require "fileutils"
require "open3"
require "tmpdir"

# A copy of spec/apps/rails, to run commands in, and files to change.
class RailsApp
  def self.open
    Dir.mktmpdir do |folder|
      FileUtils.cp_r("#{SidekiqProcess::APPS}/rails/.", folder)
      yield new(folder)
    end
  end

  attr_reader :folder

  def initialize(folder)
    @folder = File.realpath(folder)
    @redis_url = TestRedis.take
  end

  # @return [String] what the command wrote
  def run(*command, env: {})
    output, @status = Open3.capture2e(
      { "RUBYLIB" => SidekiqProcess::LIB, "RUBYOPT" => "-W0", "RAILS_ENV" => "test", "BUNDLE_GEMFILE" => nil, "REDIS_URL" => @redis_url,
        "TASKER_DATABASE_URL" => nil, "DATABASE_URL" => nil, "SHOP_DATABASE_URL" => TestDatabase.url, **env }, *command, chdir: folder
    )
    output
  end

  def rails(*arguments, **options) = run(RbConfig.ruby, "bin/rails", *arguments, **options)

  # @return [String] what the code printed, in the loaded app
  def ruby(code, **options) = run(RbConfig.ruby, "-e", 'require "./config/environment"', "-e", code, **options)

  def success? = @status.success?

  def write(path, text)
    FileUtils.mkdir_p(File.dirname(File.join(folder, path)))
    File.write(File.join(folder, path), text)
  end

  def read(path) = File.read(File.join(folder, path))

  # Files in the folders, sorted.
  def files(*folders)
    all = folders.flat_map { |name| Dir[File.join(folder, name, "**", "{*,.keep}")] }
    all.select { |file| File.file?(file) }.map { |file| file.delete_prefix("#{folder}/") }.sort
  end
end
