# frozen_string_literal: true

require "active_record"
require "open3"
require "rubygems/package"
require "tasker_core/app_check"
require "tasker_core/testing/rspec"
require "tasker_core/testing/minitest"

# sig/tasker_core.rbs says which names are public: all of them are documented,
# and none of their public methods is missing there, or takes something else.
RSpec.describe "The public names" do
  folders = [File.expand_path("../sig", __dir__), File.expand_path("support/sig", __dir__)]
  begin
    require "rbs"
  rescue LoadError
    it("are in sig/tasker_core.rbs") { skip "the gem rbs isn't installed" }
    next
  end

  loader = RBS::EnvironmentLoader.new
  libraries = %w[logger monitor] # the one needs the other
  libraries.each { |library| loader.add(library:, version: nil) }
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

  # Or where YARD is told of what is defined in a loop, or by Value.attributes.
  def documented?(method)
    name = Regexp.escape(method.name.name)
    comment(method) =~ /\w/ || %i[inspect logger=].include?(method.name) ||
      File.read(Object.const_source_location(method.owner.name).first).match?(/# @!(attribute \[r\] #{name}$|method #{name}\()/)
  end

  def public_methods_of(owner, singleton: false)
    names = singleton ? owner.singleton_methods(false) : owner.public_instance_methods(false)
    names.map { |name| singleton ? owner.method(name) : owner.instance_method(name) }
         .select { |method| in_gem?(method) && !comment(method).include?("@private") }
  end

  # Those that RSpec, Struct and the like define have their lines elsewhere.
  def generated(owner)
    return owner.members.flat_map { |member| [member, :"#{member}="] } if owner.is_a?(Class) && owner < Struct

    owner == TaskerCore::Testing::Matchers ? owner.public_instance_methods(false) : []
  end

  def signed(definition, type_name)
    definition.methods.select { |_, method| method.defined_in == type_name && method.public? }.keys - %i[initialize new]
  end

  # What can be given: how many positional arguments, and which keywords.
  def arguments(method)
    given = method.parameters.map { |kind, name| %i[key keyreq].include?(kind) ? [kind, name] : [kind] }
    (given - [[:block]]).sort
  end

  def signed_arguments(definition, name)
    type = definition.methods.fetch(name).method_types.first.type
    [*type.required_positionals.map { [:req] }, *type.optional_positionals.map { [:opt] }, *(type.rest_positionals && [[:rest]]),
     *type.required_keywords.keys.map { |key| [:keyreq, key] }, *type.optional_keywords.keys.map { |key| [:key, key] },
     *(type.rest_keywords && [[:keyrest]])].sort
  end

  # attr_writer's argument has no name, and no fault.
  def expect_arguments(definition, methods)
    methods.reject { |method| method.name.end_with?("=") && method.name != :== }.each do |method|
      expect([method.name, signed_arguments(definition, method.name)]).to eq([method.name, arguments(method)])
    end
  end

  it "have signatures that are well formed" do
    options = [*folders.flat_map { |folder| ["-I", folder] }, *libraries.flat_map { |library| ["-r", library] }]
    output, status = Open3.capture2e(RbConfig.ruby, "-W0", "-rrbs", "-rrbs/cli", "-e", "RBS::CLI.new(stdout: $stdout, stderr: $stderr).run(ARGV)",
                                     "--", *options, "validate", "--silent")

    expect(status).to be_success, output
  end

  names.each do |type_name|
    it "are signed and documented in #{type_name.to_s.delete_prefix('::')}, all that are there and no others" do
      owner = Object.const_get(type_name.to_s)
      instance = public_methods_of(owner)
      singleton = public_methods_of(owner, singleton: true)

      types = builder.build_instance(type_name)
      singleton_types = builder.build_singleton(type_name)
      expect(signed(types, type_name)).to match_array(instance.map(&:name) | generated(owner))
      expect(signed(singleton_types, type_name)).to match_array(singleton.map(&:name) - [:new])
      expect_arguments(types, instance)
      expect_arguments(singleton_types, singleton.reject { |method| method.name == :new })
      expect([*instance, *singleton].reject { |method| documented?(method) }.map(&:name)).to be_empty
    end

    it "are made of #{type_name.to_s.delete_prefix('::')} as is signed" do
      owner = Object.const_get(type_name.to_s)
      own = owner.instance_method(:initialize) if owner.is_a?(Class) && owner.private_method_defined?(:initialize, false)
      own = nil if own && (!in_gem?(own) || comment(own).include?("@private"))
      types = builder.build_instance(type_name)

      expect(types.methods[:initialize]&.defined_in == type_name).to be(!own.nil?)
      expect_arguments(types, [own].compact)
    end
  end

  it "have the constants that are signed" do
    constants = environment.constant_decls.keys.map(&:to_s).grep(/\A::TaskerCore/)

    expect(constants).to include("::TaskerCore::VERSION")
    expect(constants.reject { |name| Object.const_defined?(name) }).to be_empty
  end

  # What an app may name; the rest is the gem's own affair.
  it "are those of the documents" do
    wanted = %w[
      BaseTaskHandler TaskHandlerRegistry TaskRequest TaskInitializationResult TaskResult StepResult ViableStep WorkflowCoordinator TaskEnds
      BaseStepHandler ApiStepHandler ApiClient ApiClient::Response HttpOutcome StepHandler TaskContext StepContext StepSequence StepSequence::Step
      EventPublisher EventSubscriber EventSubscription Event EventNames Value ErrorRules ErrorMapping Configuration HandlerSettings SecretFilter
      AppCheck StepJob Task Step TaskEvent TaskTemplate
      Testing Testing::System Testing::Outcome Testing::Run Testing::Run::Attempt Testing::Run::Step Testing::Run::Event Testing::EnqueuedTask
      Testing::Templates Testing::Template Testing::Matchers Testing::Assertions
    ]
    documents = Dir[File.expand_path("../../{README,docs/*,ruby_bridge/README}.md", __dir__)].map { |file| File.read(file) }.join

    expect(names.map(&:to_s)).to include(*(wanted | documents.scan(/TaskerCore::([A-Z]\w*(?:::[A-Z]\w*)*)/).flatten).map { |name| "::TaskerCore::#{name}" })
  end

  it "include every error" do
    values = [TaskerCore, TaskerCore::Testing].flat_map { |space| space.constants.map { |name| space.const_get(name) } }
    errors = values.select { |value| value.is_a?(Class) && value <= TaskerCore::Error }

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
