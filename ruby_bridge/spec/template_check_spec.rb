# frozen_string_literal: true

RSpec.describe TaskerCore::TemplateCheck do
  before do
    stub_const("Render", Class.new(TaskerCore::BaseStepHandler) { queue "low" })
    stub_const("Charge", Class.new(TaskerCore::BaseStepHandler))
    stub_const("Fulfil", Class.new(TaskerCore::BaseTaskHandler))
  end

  def template(*steps, **more) = { "name" => "t", "step_templates" => steps, **more }

  it "has nothing to say about what fits" do
    fits = template({ "name" => "a", "handler_class" => "Render", "queue" => "low" }, { "name" => "b", "handler_class" => "Charge", "queue" => "high" },
                    { "name" => "c", "handler" => "tasker.echo" }, "task_handler_class" => "Fulfil")

    expect(described_class.problems([fits, template])).to be_empty
  end

  it "says which classes are missing and which queues differ" do
    steps = [{ "name" => "a", "handler_class" => "Render" }, { "name" => "b", "handler_class" => "Gone" }]
    odd = template(*steps, "task_handler_class" => "Charge", "namespace_name" => "shop", "version" => "1.2.0")

    expect(described_class.problems([odd])).to match [
      %r{\Ashop/t@1.2.0: Charge is not a task handler},
      "shop/t@1.2.0: step a goes to the queue default, and Render is meant for low: say queue: low in the template",
      %r{\Ashop/t@1.2.0: step b: no class Gone}
    ]
  end

  it "looks at the templates of the registry" do
    TaskerCore::TaskHandlerRegistry.new.register(name: "mine", yaml_template: template({ "name" => "a", "handler_class" => "Gone" }))

    expect(described_class.problems).to match [%r{\Adefault/mine@0.1.0: step a: no class Gone}]
  ensure
    TaskerCore::TaskHandlerRegistry.new.clear!
  end
end
