# frozen_string_literal: true

module TaskerCore
  module Testing
    # What runs an attempt: the step's own class, or what a test puts in its place.
    module Handler
      module_function

      # @param handler [Class, String, BaseStepHandler] a class, its name, or a handler that was made already
      # @return [#call]
      def of(handler)
        return ->(*arguments) { handler.handle(*arguments) } if handler.is_a?(BaseStepHandler)

        lambda do |*arguments|
          found = handler.is_a?(Class) && handler < BaseStepHandler ? handler : HandlerLookup.find(handler.to_s)
          in_transaction(found) { found.new.handle(*arguments) }
        end
      end

      # @param stub [Object] a result; an exception, to be raised; something to call with task, sequence and
      #   step; or a list of these, one per attempt, of which the last one stays
      # @return [#call]
      def stub(stub)
        lambda do |task, sequence, step|
          answer = stub.is_a?(Array) ? stub.fetch(step.attempt - 1, stub.last) : stub
          raise answer if answer.is_a?(Exception) || (answer.is_a?(Class) && answer <= Exception)

          answer.respond_to?(:call) ? answer.call(task, sequence, step) : answer
        end
      end

      # What a transactional handler wrote is rolled back when it fails.
      def in_transaction(handler, &)
        return yield unless handler.respond_to?(:transactional?) && handler.transactional? && defined?(ActiveRecord::Base)

        ActiveRecord::Base.transaction(requires_new: true, &)
      end
    end
  end
end
