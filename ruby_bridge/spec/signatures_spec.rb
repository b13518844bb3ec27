# frozen_string_literal: true

require "active_record"
require "open3"
require "rubygems/package"
require "tasker_core/app_check"

# sig/tasker_core.rbs says which names are public: all of them are documented,
# and none of their public methods is missing there.
RSpec.describe "The public names" do
  folders = [File.expand_path("../sig", __dir__), File.expand_path("support/sig", __dir__)]
  begin
    require "rbs"
  rescue LoadError
    it("are in sig/tasker_core.rbs") { skip "the gem rbs isn't installed" }
    next
  end

  loader = RBS::EnvironmentLoader.new
  loader.add(library: "logger", version: nil)
  folders.each { |folder| loader.add(path: Pathname(folder)) }
  environment = RBS::Environment.from_loader(loader).resolve_type_names
  builder = RBS::DefinitionBuilder.new(env: environment)
  names = environment.class_decls.keys.select { |name| name.to_s.start_with?("::TaskerCore") }

  # The models connect when they are loaded.
  before do
    use_test_database
    ActiveRecord::Base.establish_connection(TestDatabase.url)
  end

  after { ActiveRecord::Base.remove_connection }

  def in_gem?(method) = method.source_location&.first.to_s.start_with?(SidekiqProcess::LIB)

  # The comment above the definition; that of an attr_reader's line holds for all its names.
  def comment(method)
    file, line = method.source_location
    above = File.readlines(file)[0...(line - 1)].reverse
    above.take_while { |text| text.strip.start_with?("#") }.join
  end

  def public_methods_of(owner, singleton: false)
    names = singleton ? owner.singleton_methods(false) : owner.public_instance_methods(false)
    names.map { |name| singleton ? owner.method(name) : owner.instance_method(name) }
         .select { |method| in_gem?(method) && !comment(method).include?("@private") }
  end

  def signed(definition, type_name) = definition.methods.select { |_, method| method.defined_in == type_name }.keys

  it "have signatures that are well formed" do
    options = folders.flat_map { |folder| ["-I", folder] }
    output, status = Open3.capture2e(RbConfig.ruby, "-W0", "-rrbs", "-rrbs/cli", "-e", "RBS::CLI.new(stdout: $stdout, stderr: $stderr).run(ARGV)",
                                     *options, "-r", "logger", "validate", "--silent")

    expect(status).to be_success, output
  end

  names.each do |type_name|
    it "are signed and documented in #{type_name.to_s.delete_prefix('::')}, all that are there and no others" do
      owner = Object.const_get(type_name.to_s)
      instance = public_methods_of(owner)
      singleton = public_methods_of(owner, singleton: true)

      struct = owner.is_a?(Class) && owner < Struct # its members are Struct's own
      expect(signed(builder.build_instance(type_name), type_name) - [:initialize]).to match_array(instance.map(&:name)) unless struct
      expect(signed(builder.build_singleton(type_name), type_name) - [:new]).to match_array(singleton.map(&:name))
      expect([*instance, *singleton].reject { |method| comment(method) =~ /\w/ || %i[inspect logger=].include?(method.name) }).to be_empty
    end
  end

  it "include every error" do
    errors = TaskerCore.constants.map { |name| TaskerCore.const_get(name) }.select { |value| value.is_a?(Class) && value <= TaskerCore::Error }

    expect(names.map(&:to_s)).to include(*errors.map { |error| "::#{error.name}" })
  end

  it "are in the gem, which can be built, with signatures, generators and the Rails tasks" do
    Dir.mktmpdir do |folder|
      output, status = Open3.capture2e("gem", "build", "tasker_core.gemspec", "-o", "#{folder}/built.gem", chdir: File.expand_path("..", __dir__))
      expect(status).to be_success, output
      expect(output).not_to match(/WARNING/)
      files = Gem::Package.new("#{folder}/built.gem").contents

      expect(files).to include("lib/tasker_core.rb", "lib/tasker_core/tasks.rake", "sig/tasker_core.rbs", "README.md", "CHANGELOG.md",
                               "lib/generators/tasker/install/install_generator.rb", "lib/generators/tasker/task_handler/templates/template.yaml.tt",
                               "lib/generators/tasker/subscriber/USAGE")
      expect(files.grep(/\A(spec|Gemfile)/)).to be_empty
    end
  end
end
