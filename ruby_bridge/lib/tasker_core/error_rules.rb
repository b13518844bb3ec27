# frozen_string_literal: true

module TaskerCore
  # Which errors of a handler no further attempt mends.
  #
  #   class Orders::Charge < TaskerCore::BaseStepHandler
  #     permanent_error Gateway::Declined, code: "declined"
  #     retryable_error "Gateway::Error"
  #
  # A PermanentError is permanent and a RetryableError is not, whatever is said
  # here. For all others the rule for the class nearest to the error's own holds:
  # the handler's, then its superclasses', then config.permanent_errors. An error
  # without a rule is tried again as long as the step has attempts. Rules keep
  # names, not classes, which Rails reloads.
  #
  # By default no error of Ruby's is permanent. An ArgumentError or a
  # NoMethodError says that there is a fault in the code or in what a service
  # answered, and both get mended while the step waits for its next attempt;
  # one that was given up waits for an operator instead.
  module ErrorRules
    # What was decided about an error.
    Decision = Struct.new(:permanent, :code)
    NAME = /\A(::)?[A-Z]\w*(::[A-Z]\w*)*\z/

    # @param errors [Array<String, Class, Module>]
    # @param code [String, Symbol, nil] a word for programs, kept with the failure
    # @return [void]
    # @raise [ConfigurationError] one of them is no class of errors
    def permanent_error(*errors, code: nil) = add_error_rule(errors, Decision.new(true, code&.to_s).freeze)

    # @param errors [Array<String, Class, Module>]
    # @return [void]
    # @raise [ConfigurationError] one of them is no class of errors
    def retryable_error(*errors) = add_error_rule(errors, Decision.new(false).freeze)

    # @private
    def error_rule(name)
      @error_rules&.[](name) || (superclass.error_rule(name) if superclass.respond_to?(:error_rule))
    end

    # @param error [Exception]
    # @param handler [String, nil] name of the class that ran
    # @param permanent [Array<String, Class>] config.permanent_errors
    # @return [Decision]
    def self.decide(error, handler:, permanent: [])
      case error
      when PermanentError then Decision.new(true)
      when RetryableError then Decision.new(false)
      else
        permanent = names(permanent)
        handler = class_of(handler)
        rules = error.class.ancestors.lazy.filter_map do |ancestor|
          (handler.error_rule(ancestor.name) if handler.respond_to?(:error_rule)) || (Decision.new(true) if permanent.include?(ancestor.name))
        end
        rules.first || Decision.new(false)
      end
    end

    # @return [Array<String>]
    # @raise [ConfigurationError]
    def self.names(errors)
      Array(errors).map do |error|
        name = error.is_a?(Module) ? error.name : error
        next name.delete_prefix("::") if name.is_a?(String) && NAME.match?(name)

        raise ConfigurationError, "#{error.inspect} is no class of errors: give a class with a name, or its name, such as \"Gateway::Declined\""
      end
    end

    # The handler has run or could not be found; in neither case must looking
    # for it hide the error.
    def self.class_of(name)
      HandlerLookup.find(name) if name
    rescue StandardError, ScriptError
      nil
    end
    private_class_method :class_of

    private

    def add_error_rule(errors, decision)
      raise ConfigurationError, "#{self}: name the errors that the rule is for" if errors.empty?

      @error_rules = (@error_rules || {}).merge(ErrorRules.names(errors).to_h { |name| [name, decision] })
    end
  end
end
