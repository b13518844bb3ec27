# frozen_string_literal: true

require "rspec/expectations"
require "tasker_core/testing"

module TaskerCore
  module Testing
    # Matchers for RSpec; all take other matchers as arguments and can be combined.
    #
    #   require "tasker_core/testing/rspec"
    #
    #   expect(outcome).to be_step_success.with("amount" => 10)
    #   expect(outcome).to be_step_failure.with_code("card_declined").and be_permanent
    #   expect(outcome).to be_retryable.after(30)
    #   expect(run).to have_completed_steps("reserve", "charge")
    #   expect { order.pay! }.to have_enqueued_task("shop/fulfil_order").with_context(hash_including("order_id" => 5))
    module Matchers
      extend RSpec::Matchers::DSL

      # A step's attempt that succeeded. +with+: its result; of a Hash these members at least.
      matcher :be_step_success do
        chain(:with) { |result| @expected = [result] }

        match do |outcome|
          @outcome = outcome
          outcome.success? && (@expected.nil? || values_match?(partly(@expected.first), outcome.result))
        end
        description { @expected ? "be a success with #{RSpec::Support::ObjectFormatter.format(@expected.first)}" : "be a success" }
        failure_message { "expected the step to #{description}, and it #{@outcome}" }
        failure_message_when_negated { "expected the step not to #{description}, and it #{@outcome}" }

        # A Hash with String keys, as it is stored, is contained; anything else is itself.
        def partly(expected) = expected.instance_of?(Hash) ? RSpec::Matchers::BuiltIn::Include.new(expected) : expected
      end

      # An attempt that failed. +with_code+: its error_code; +with_message+: in its message.
      matcher :be_step_failure do
        chain(:with_code) { |code| @code = [code] }
        chain(:with_message) { |message| @message = message }

        match do |outcome|
          @outcome = outcome
          outcome.failure? && (@code.nil? || values_match?(text(@code.first), outcome.code)) && (@message.nil? || message?(outcome.error["message"]))
        end
        description do
          ["be a failure", *(@code && "with code #{RSpec::Support::ObjectFormatter.format(@code.first)}"),
           *(@message && "with message #{RSpec::Support::ObjectFormatter.format(@message)}")].join(" ")
        end
        failure_message { "expected the step to #{description}, and it #{@outcome}" }
        failure_message_when_negated { "expected the step not to #{description}, and it #{@outcome}" }

        def text(code) = code.is_a?(Symbol) ? code.name : code
        def message?(message) = @message.is_a?(String) ? message.include?(@message) : values_match?(@message, message)
      end

      # An attempt that failed so that none follows.
      matcher :be_permanent do
        match { |outcome| (@outcome = outcome).permanent? }
        failure_message { "expected the step to fail for good, and it #{@outcome}" }
        failure_message_when_negated { "expected the step not to fail for good, and it #{@outcome}" }
      end

      # An attempt that failed so that another may follow. +after+: seconds that it asks to wait.
      matcher :be_retryable do
        chain(:after) { |seconds| @seconds = [seconds] }

        match do |outcome|
          @outcome = outcome
          outcome.retryable? && (@seconds.nil? || values_match?(@seconds.first, outcome.retry_after))
        end
        description { ["be retryable", *(@seconds && "after #{RSpec::Support::ObjectFormatter.format(@seconds.first)} s")].join(" ") }
        failure_message { "expected the step to #{description}, and it #{@outcome}" }
        failure_message_when_negated { "expected the step not to #{description}, and it #{@outcome}" }
      end

      # A run, inline or in a real database, of which these steps completed. Others may have, too.
      matcher :have_completed_steps do |*names|
        match { |run| ((@names = names.map(&:to_s)) - (@run = run).completed_steps).empty? }
        match_when_negated { |run| ((@names = names.map(&:to_s)) & (@run = run).completed_steps).empty? }
        failure_message { "expected completed steps: #{@names.join(', ')}; not so: #{(@names - @run.completed_steps).join(', ')}\n#{@run}" }
        failure_message_when_negated { "expected steps not to be completed, and these are: #{(@names & @run.completed_steps).join(', ')}\n#{@run}" }
      end

      # A task that was enqueued in fake or inline mode: within the block, or, of
      # Testing (or anything else), since Testing.clear.
      #
      #   expect { … }.to have_enqueued_task("shop/fulfil_order").with_context("order_id" => 5).with(priority: 1).twice
      #   expect(TaskerCore::Testing).not_to have_enqueued_task
      matcher :have_enqueued_task do |name = nil|
        supports_block_expectations

        chain(:with_context) { |context| @context = [context] }
        chain(:with) { |members| @members = members }
        chain(:exactly) { |count| @count = count }
        chain(:times) { self }
        chain(:once) { @count = 1 }
        chain(:twice) { @count = 2 }

        match do |actual|
          look(name, actual)
          @count ? @matching.size == @count : @matching.any?
        end
        match_when_negated do |actual|
          look(name, actual)
          @count ? @matching.size != @count : @matching.empty?
        end
        description do
          ["enqueue", *(@count && "exactly #{@count} times"), name ? "task #{name}" : "a task",
           *(@context && "with context #{RSpec::Support::ObjectFormatter.format(@context.first)}"),
           *(@members && "with #{RSpec::Support::ObjectFormatter.format(@members)}")].join(" ")
        end
        failure_message { "expected to #{description}#{found}" }
        failure_message_when_negated { "expected not to #{description}#{found}" }

        define_method(:look) do |wanted, actual|
          raise InputError, "no task is recorded: begin with TaskerCore::Testing.fake! or inline!" if Mode.current.name == :disabled && Testing.tasks.empty?

          before = actual.is_a?(Proc) ? Testing.tasks : []
          actual.call if actual.is_a?(Proc)
          @tasks = Testing.tasks - before
          @matching = @tasks.select { |task| (wanted.nil? || wanted == task.full_name) && fits?(task) }
        end

        define_method(:fits?) do |task|
          (@context.nil? || values_match?(@context.first, task.context)) &&
            (@members || {}).all? { |member, expected| values_match?(expected, task.public_send(member)) }
        end

        define_method(:found) do
          @tasks.empty? ? ", and no task was enqueued" : ", and there was enqueued:\n#{@tasks.map { |task| "  #{task}" }.join("\n")}"
        end
      end
    end
  end
end

RSpec.configure { |config| config.include TaskerCore::Testing::Matchers } if RSpec.respond_to?(:configure)
