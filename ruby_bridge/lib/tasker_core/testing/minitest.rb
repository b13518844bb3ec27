# frozen_string_literal: true

require "tasker_core/testing"

module TaskerCore
  module Testing
    # The same for Minitest: include it into your test class.
    #
    #   require "tasker_core/testing/minitest"
    #
    #   class ChargeTest < Minitest::Test
    #     include TaskerCore::Testing::Assertions
    module Assertions
      # @param result [Object] none: any
      # @return [Object] the result
      def assert_step_success(outcome, *result)
        assert outcome.success?, "expected the step to succeed, and it #{outcome}"
        result.each { |expected| assert_equal expected, outcome.result } # nil too
        outcome.result
      end

      # @param code [String, Symbol, nil] nil: any
      # @param permanent [Boolean, nil] nil: either
      # @param retry_after [Numeric, nil] nil: any
      def assert_step_failure(outcome, code: nil, permanent: nil, retry_after: nil)
        assert outcome.failure?, "expected the step to fail, and it #{outcome}"
        assert_equal code.to_s, outcome.code, "the step #{outcome}" if code
        assert_equal permanent, outcome.permanent?, "the step #{outcome}" unless permanent.nil?
        assert_equal retry_after, outcome.retry_after, "the step #{outcome}" if retry_after
      end

      # @param run [Run] or one of System
      def assert_completed_steps(run, *names)
        missing = names.map(&:to_s) - run.completed_steps
        assert missing.empty?, "expected completed steps, and these are not: #{missing.join(', ')}\n#{run}"
      end

      # @param name [String, nil] namespace/name; nil: any
      # @param context [Hash, nil] members that the context has at least; nil: any
      # @yield without a block: what was enqueued since Testing.clear
      # @return [EnqueuedTask] the last one that fits
      def assert_enqueued_task(name = nil, context: nil)
        before = block_given? ? Testing.tasks : []
        yield if block_given?
        tasks = Testing.tasks - before
        found = tasks.reverse.find { |task| (name.nil? || name == task.full_name) && (context.nil? || task.context >= StoredJson.build(context, "context")) }
        wanted = "task #{name}#{" with #{context.inspect}" if context}"
        assert found, "expected the #{wanted}; enqueued: #{tasks.empty? ? 'none' : tasks.join(', ')}"
        found
      end

      # @yield without a block: what was enqueued since Testing.clear
      def refute_enqueued_task(name = nil)
        before = block_given? ? Testing.tasks : []
        yield if block_given?
        found = (Testing.tasks - before).select { |task| name.nil? || name == task.full_name }
        assert found.empty?, "expected no task #{name || 'at all'}; enqueued: #{found.join(', ')}"
      end
    end
  end
end
