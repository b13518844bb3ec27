# frozen_string_literal: true

require "rails/generators"
require "rails/generators/named_base"
require_relative "../test_framework"

module Tasker
  module Generators
    # rails generate tasker:subscriber OrderMailer task.completed
    class SubscriberGenerator < Rails::Generators::NamedBase
      include TestFramework

      source_root File.join(__dir__, "templates")
      argument :events, type: :array, banner: "EVENT"

      def check_events
        wrong = events.find { |event| !TaskerCore::EventNames::NAME.match?(event) }
        raise Thor::Error, "#{wrong.inspect} is no event: words with dots, such as task.completed" if wrong

        events.each { |event| TaskerCore::EventNames.check_pattern(event) }
      rescue TaskerCore::ConfigurationError => e
        raise Thor::Error, e.message
      end

      def create_subscriber = template("subscriber.rb.tt", File.join("app/subscribers", class_path, "#{file_name}.rb"))

      def create_spec
        source, folder, suffix = { rspec: ["subscriber_spec.rb.tt", "spec", "_spec"], test_unit: ["subscriber_test.rb.tt", "test", "_test"] }[test_framework]
        template(source, File.join(folder, "subscribers", class_path, "#{file_name}#{suffix}.rb")) if source
      end

      private

      def method_of(event) = "handle_#{event.tr('.', '_')}"
    end
  end
end
