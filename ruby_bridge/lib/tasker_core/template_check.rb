# frozen_string_literal: true

module TaskerCore
  # Holds templates against the classes of this process: what would only show
  # when the step runs shows when the app is tested, or deployed.
  #
  #   expect(TaskerCore::TemplateCheck.problems).to be_empty
  module TemplateCheck
    module_function

    # @param templates [Array<Hash{String => Object}>] as YAML has them; those of the registry, if left out
    # @return [Array<String>] in words, one for each class that is missing or no handler, and each handler whose
    #   `queue` is not the step's
    # @raise [ConfigurationError] a template file can't be read
    def problems(templates = TaskHandlerRegistry.instance.templates)
      templates.flat_map do |template|
        label = "#{template.fetch('namespace_name', 'default')}/#{template['name']}@#{template.fetch('version', '0.1.0')}"
        [task_problem(template), *steps(template).map { |step| step_problem(step) }].compact.map { |problem| "#{label}: #{problem}" }
      end
    end

    def steps(template) = Array(template["step_templates"]).select { |step| step.is_a?(Hash) && step["handler_class"] }

    def task_problem(template)
      TaskHandlerRegistry.task_handler(template["task_handler_class"]) if template["task_handler_class"]
      nil
    rescue HandlerNotFoundError => e
      e.message
    end

    def step_problem(step)
      handler = HandlerLookup.find(step["handler_class"])
      queue = step["queue"] || "default"
      return if handler.queue.nil? || handler.queue == queue

      "step #{step['name']} goes to the queue #{queue}, and #{handler} is meant for #{handler.queue}: say queue: #{handler.queue} in the template"
    rescue HandlerNotFoundError => e
      "step #{step['name']}: #{e.message}"
    end
  end
end
