# frozen_string_literal: true

module Tasker
  module Generators
    # RSpec or Minitest, whichever the app uses.
    module TestFramework
      def self.included(generator)
        generator.class_option :test_framework, type: :string, desc: "rspec, test_unit, or none (default: what the app uses)"
      end

      private

      # @return [Symbol, nil]
      def test_framework
        named = options[:test_framework] || Rails.application&.config&.generators&.options&.dig(:rails, :test_framework)
        return named.to_sym == :none ? nil : named.to_sym if named

        File.directory?(File.join(destination_root, "spec")) ? :rspec : :test_unit
      end
    end
  end
end
