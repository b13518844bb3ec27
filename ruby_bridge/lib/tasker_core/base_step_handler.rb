# frozen_string_literal: true

module TaskerCore
  # What a step's +handler_class+ inherits from. A handler has one public task:
  #
  #   class Orders::Charge < TaskerCore::BaseStepHandler
  #     def process(task, sequence, step)
  #       charge = Gateway.charge(task["order_id"], idempotency_key: step.idempotency_key)
  #       { charge_id: charge.id, amount: charge.amount }
  #     end
  #   end
  #
  # It is made anew for every attempt, without arguments. An attempt may run
  # twice (a process dies after the work and before the report): what it does
  # outside must bear that, see StepContext#idempotency_key.
  class BaseStepHandler
    extend ErrorRules

    # Runs the attempt in a transaction of ActiveRecord::Base that commits the
    # step's result as well: what the handler writes there happens exactly
    # once. Only for a database that is tasker's too, and for work that is
    # short: the transaction is open all the while.
    #
    #   class Orders::Book < TaskerCore::BaseStepHandler
    #     transactional
    #
    # @return [void]
    def self.transactional = @transactional = true

    class << self
      alias transactional! transactional
    end

    # @return [Boolean]
    def self.transactional? = @transactional || (self != BaseStepHandler && superclass.transactional?) || false

    # The Sidekiq queue that this handler is meant for. Which one its jobs go to
    # is said by +queue+ of the step in the template, and by nothing else: the
    # engine doesn't know Ruby classes. Said here as well, a check can tell where
    # the two differ.
    #
    #   class Reports::Render < TaskerCore::BaseStepHandler
    #     queue "low"
    #
    # @param name [String, Symbol, nil] nil: only asks
    # @return [String, nil] nil: none was said, here or in a superclass
    def self.queue(name = nil)
      @queue = name.to_s.freeze unless name.nil?
      @queue || (superclass.queue unless self == BaseStepHandler)
    end

    # @private
    def self.method_added(name)
      super
      return unless name == :handle && self != BaseStepHandler

      raise ConfigurationError, "#{self} must not define handle, which runs the other two: define process"
    end

    # Does the step's work.
    #
    # @param task [TaskContext]
    # @param sequence [StepSequence]
    # @param step [StepContext]
    # @return [Object] the output: JSON values; symbols, Time, Date and
    #   BigDecimal become strings
    # @raise [RetryableError, PermanentError, StandardError]
    def process(task, sequence, step)
      raise NotImplementedError, "#{self.class} has no method process(task, sequence, step)"
    end

    # Makes the step's results of the output. Its errors fail the step as well.
    #
    # @param step [StepContext]
    # @param output [Object] what #process returned
    # @param initial_results [nil] results that the step had before
    # @return [Object] the results, as for #process
    def process_results(step, output, initial_results) # rubocop:disable Lint/UnusedMethodArgument
      output
    end

    # Runs one attempt. Not for overriding.
    #
    # @return [Object] the results
    def handle(task, sequence, step)
      process_results(step, process(task, sequence, step), step.results)
    end
  end
end
