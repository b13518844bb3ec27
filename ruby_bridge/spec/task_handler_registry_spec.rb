# frozen_string_literal: true

require "fileutils"
require "pathname"
require "tmpdir"

RSpec.describe TaskerCore::TaskHandlerRegistry do
  subject(:registry) { described_class.new }

  around do |example|
    Dir.mktmpdir { |folder| (@folder = folder) && example.run }
  ensure
    described_class.instance.clear!
  end

  def file(name, text) = File.write(File.join(@folder, name), text)

  def fulfil(version, extra = "") = "namespace_name: shop\nname: fulfil_order\nversion: #{version}\n#{extra}step_templates: [{name: a, handler: tasker.echo}]\n"

  def load! = registry.load_templates("#{@folder}/**/*.yaml")

  def find(request) = registry.find_handler_for_task_request(request)

  it "is one per process" do
    expect(described_class.new).to equal(described_class.instance)
  end

  it "finds what files say" do
    file("a.yaml", fulfil("1.0.0", "task_handler_class: Orders::Fulfil\n"))
    file("b.yaml", "name: plain\nstep_templates: [{name: a, handler: tasker.echo}]\n")
    load!

    expect(find({ "namespace" => "shop", "name" => "fulfil_order" }))
      .to match("found" => true, "namespace" => "shop", "name" => "fulfil_order", "version" => "1.0.0", "ruby_class_name" => "Orders::Fulfil",
                "yaml_template" => a_hash_including("name" => "fulfil_order", "step_templates" => [{ "name" => "a", "handler" => "tasker.echo" }]))
    expect(registry.find_handler_for_task_request(name: "plain"))
      .to include("namespace" => "default", "version" => "0.1.0", "ruby_class_name" => "TaskerCore::BaseTaskHandler")
  end

  it "takes the latest version, or the one that is asked for" do
    %w[1.9.0 1.10.0 1.2.0].each { |version| file("#{version}.yaml", fulfil(version)) }
    load!

    expect(find(TaskerCore::TaskRequest.new(namespace: "shop", name: "fulfil_order"))["version"]).to eq("1.10.0")
    expect(find({ namespace: "shop", name: "fulfil_order", version: "1.2.0" })["version"]).to eq("1.2.0")
    expect(find({ namespace: "shop", name: "fulfil_order", version: "2.0.0" }))
      .to include("found" => false, "error" => "shop/fulfil_order has no version 2.0.0; it has 1.2.0, 1.9.0, 1.10.0")
  end

  it "suggests what was probably meant" do
    file("a.yaml", fulfil("1.0.0"))
    load!

    expect(find({ namespace: "shop", name: "fulfil_ordre" }))
      .to eq("found" => false, "namespace" => "shop", "name" => "fulfil_ordre", "version" => nil,
             "error" => "there is no template shop/fulfil_ordre among those registered here; did you mean shop/fulfil_order?")
  end

  it "keeps what is registered by hand, and tells it" do
    stub_const("Orders::Refund", Class.new(TaskerCore::BaseTaskHandler))
    registry.register(name: "refund", namespace_name: "shop", version: "1.0.0", ruby_class_name: Orders::Refund, yaml_template: fulfil("9.9.9"))
    registry.register_handler(name: "other")

    expect(registry.list_handlers).to eq(
      [{ "namespace" => "default", "name" => "other", "version" => "0.1.0", "ruby_class_name" => "TaskerCore::BaseTaskHandler" },
       { "namespace" => "shop", "name" => "refund", "version" => "1.0.0", "ruby_class_name" => "Orders::Refund" }]
    )
    expect(registry.list_handlers(namespace: "shop").size).to eq(1)
    expect(registry.registered?("refund", namespace_name: "shop")).to be(true)
    expect(registry.registered?("refund")).to be(false)
    expect(find({ namespace: "shop", name: "refund" })["yaml_template"]).to include("name" => "refund", "version" => "1.0.0")
    registry.clear!
    expect(registry.list_handlers).to be_empty
  end

  it "refuses a second class for a template, unless it shall replace the first" do
    2.times { registry.register(name: "refund", ruby_class_name: "Refund") } # as to_prepare does

    expect { registry.register(name: "refund", ruby_class_name: "Other") }
      .to raise_error(TaskerCore::ConfigurationError, "default/refund@0.1.0 has the handler Refund already, not Other; say replace: true to change it")
    registry.register(name: "refund", ruby_class_name: "Other", replace: true)
    expect(find({ name: "refund" })["ruby_class_name"]).to eq("Other")
  end

  it "makes handlers of classes as they are now" do
    registry.register(name: "refund", ruby_class_name: "Refund", yaml_template: { "description" => "money back" })
    2.times do
      stub_const("Refund", Class.new(TaskerCore::BaseTaskHandler)) # reloaded
      expect(registry.handler_for({ name: "refund" })).to be_an_instance_of(Refund).and have_attributes(name: "refund")
    end
  end

  it "says which class is missing or is no task handler" do
    stub_const("Refund", Class.new)
    registry.register(name: "refund", ruby_class_name: "Refund")
    registry.register(name: "gone", ruby_class_name: "Orders::Gone")

    expect { registry.handler_for({ name: "refund" }) }.to raise_error(TaskerCore::HandlerNotFoundError, /Refund is not a task handler: let it inherit/)
    expect { registry.handler_for({ name: "gone" }) }.to raise_error(TaskerCore::HandlerNotFoundError, /no class Orders::Gone in this process/)
    expect { registry.handler_for(name: "refunds") }.to raise_error(TaskerCore::HandlerNotFoundError, %r{did you mean default/refund\?})
  end

  it "reads files when it is asked, and again after a reload" do
    load!
    expect(find({ namespace: "shop", name: "fulfil_order" })["found"]).to be(false)

    file("a.yaml", fulfil("1.0.0"))
    expect(find({ namespace: "shop", name: "fulfil_order" })["found"]).to be(false)
    registry.reload!
    expect(find({ namespace: "shop", name: "fulfil_order" })["found"]).to be(true)
  end

  it "has a Rails app's folder without being told" do
    FileUtils.mkdir_p("#{@folder}/config/tasker/tasks/shop")
    file("config/tasker/tasks/shop/a.yml", fulfil("1.0.0"))
    root = Pathname(@folder)
    stub_const("Rails", Module.new { define_singleton_method(:root) { root } })

    expect(registry.registered?("fulfil_order", namespace_name: "shop")).to be(true)
  end

  {
    "name: [" => /bad\.yaml: .* at line 2/, "- a" => /bad\.yaml: a template is a mapping/, "step_templates: []" => /bad\.yaml: the template has no name/,
    "name: a\nversion: 1.2" => /bad\.yaml: version must be MAJOR\.MINOR\.PATCH, as 1\.2\.0, not 1\.2/,
    "name: a\ntask_handler_class: system('ls')" => /bad\.yaml: task_handler_class must be/, "name: !ruby/object:Object {}" => /bad\.yaml.*Object/
  }.each do |text, message|
    it "says where #{text.inspect} is wrong" do
      file("bad.yaml", text)
      load!

      expect { find({ name: "a" }) }.to raise_error(TaskerCore::ConfigurationError, message)
    end
  end

  it "refuses two files with the same template" do
    %w[a b].each { |name| file("#{name}.yaml", fulfil("1.0.0")) }
    load!

    expect { registry.list_handlers }.to raise_error(TaskerCore::ConfigurationError, %r{shop/fulfil_order@1.0.0 is in two files: .*a\.yaml and .*b\.yaml})
  end

  it "looks into the database when asked" do
    use_test_database
    name = register_template([{ position: 0, name: "a", handler: "tasker.echo", attempt_limit: 1 }])
    TestDatabase.connection.exec_params("UPDATE tasker.task_templates SET definition = '{\"task_handler_class\": \"Stored\"}' WHERE name = $1", [name])

    expect(find({ namespace: "spec", name: })["found"]).to be(false)
    expect(registry.find_handler_for_task_request({ namespace: "spec", name: }, database: true))
      .to include("found" => true, "version" => "1.0.0", "ruby_class_name" => "Stored", "yaml_template" => a_hash_including("name" => name))
    expect(registry.find_handler_for_task_request({ namespace: "spec", name: "#{name}x" }, database: true)["error"])
      .to start_with("there is no template spec/#{name}x in files or in the database; did you mean spec/#{name}") # other specs' may be near too
  end

  it "is the same to many threads" do
    threads = Array.new(8) do |thread|
      Thread.new { 50.times { |n| registry.register(name: "t#{thread}_#{n}") && registry.list_handlers } }
    end
    threads.each(&:join)

    expect(registry.list_handlers.size).to eq(400)
  end
end
