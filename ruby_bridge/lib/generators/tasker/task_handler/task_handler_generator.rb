# frozen_string_literal: true

require "rails/generators"
require "rails/generators/named_base"
require "tsort"
require_relative "../test_framework"

module Tasker
  module Generators
    # rails generate tasker:task_handler shop/fulfil_order reserve charge:reserve ship:charge
    class TaskHandlerGenerator < Rails::Generators::NamedBase
      include TestFramework

      # A step of the command line, and what is made of it.
      Step = Struct.new(:name, :depends_on) do
        def class_name = name.tr(".-", "__").camelize

        def file_name = name.tr(".-", "__").underscore
      end

      STEP_NAME = /\A[a-z][\w.-]*\z/i

      source_root File.join(__dir__, "templates")
      argument :steps, type: :array, banner: "STEP[:DEPENDENCY,…]"
      class_option :task_handler, type: :boolean, default: false, desc: "add a task handler class"
      class_option :version, type: :string, default: "1.0.0", desc: "of the template"

      def check_steps
        raise Thor::Error, "the version #{options[:version].inspect} is not MAJOR.MINOR.PATCH" unless options[:version].match?(/\A\d+\.\d+\.\d+\z/)

        all.each { |step| check_step(step) }
        twice = all.map(&:class_name).tally.find { |_, count| count > 1 }
        raise Thor::Error, "two steps are called #{twice.first}: give each a name of its own" if twice

        order
      end

      def create_template = template("template.yaml.tt", File.join("config/tasker/tasks", class_path, "#{file_name}.yaml"))

      def create_handlers
        all.each do |step|
          @step = step
          template("handler.rb.tt", File.join("app/handlers", class_path, file_name, "#{step.file_name}.rb"))
        end
      end

      def create_task_handler
        template("task_handler.rb.tt", File.join("app/handlers", class_path, "#{file_name}_handler.rb")) if options[:task_handler]
      end

      def create_specs
        source, folder, suffix = { rspec: ["handler_spec.rb.tt", "spec", "_spec"], test_unit: ["handler_test.rb.tt", "test", "_test"] }[test_framework]
        return unless source

        all.each do |step|
          @step = step
          template(source, File.join(folder, "handlers", class_path, file_name, "#{step.file_name}#{suffix}.rb"))
        end
      end

      private

      def all
        @all ||= steps.map do |text|
          name, dependencies = text.split(":", 2)
          Step.new(name, dependencies.to_s.split(","))
        end
      end

      def check_step(step)
        unless STEP_NAME.match?(step.name.to_s)
          raise Thor::Error, "#{step.name.inspect} is no name for a step: a letter, then letters, digits, _, . and -, such as charge:reserve"
        end

        unknown = step.depends_on.find { |name| all.none? { |other| other.name == name } }
        raise Thor::Error, "#{step.name} depends on #{unknown}, which is no step; the steps are: #{all.map(&:name).join(', ')}" if unknown
      end

      # A step after those that it depends on.
      def order
        by_name = all.to_h { |step| [step.name, step] }
        TSort.tsort(->(&each) { all.each(&each) }, ->(step, &each) { step.depends_on.map { |name| by_name.fetch(name) }.each(&each) })
      rescue TSort::Cyclic => e
        raise Thor::Error, "these steps depend on each other in a circle: #{e.message[/\[.*\]/].scan(/name="([^"]+)"/).flatten.join(', ')}"
      end

      def namespace_name = class_path.empty? ? "default" : class_path.join(".")

      def module_name = class_name

      def run_step_arguments(step)
        results = step.depends_on.map { |name| "#{name.inspect} => { done: #{name.inspect} }" }
        ["step: #{step.name.inspect}", "context: {}", *("dependencies: { #{results.join(', ')} }" if results.any?)].join(", ")
      end

      def handler_name(step) = "#{module_name}::#{step.class_name}"
    end
  end
end
