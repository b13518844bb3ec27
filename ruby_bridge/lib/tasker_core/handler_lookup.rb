# frozen_string_literal: true

module TaskerCore
  # Finds the class that a step names. Looked up for every attempt: classes are
  # reloaded in development, and a name from the database must never become
  # anything but a handler.
  module HandlerLookup
    CLASS_NAME = /\A(::)?[A-Z]\w*(::[A-Z]\w*)*\z/

    module_function

    # @param name [String] such as "Orders::Charge"
    # @return [Class, AdoptedJob] a subclass of BaseStepHandler, or what runs a job class as one
    # @raise [HandlerNotFoundError]
    def find(name)
      handler = constant(name)
      return handler if handler.is_a?(Class) && handler < BaseStepHandler

      AdoptedJob.for(handler) or
        raise HandlerNotFoundError, "#{name} is not a step handler: let it inherit from TaskerCore::BaseStepHandler, name a job class of " \
                                    "the app's own that config.adopt_jobs allows, or correct handler_class in the template"
    end

    # @param names [Array<String>]
    # @return [HandlerNotFoundError, nil] about the first that there is nothing of in this process
    def missing(names)
      names.each { |name| constant(name) }
      nil
    rescue HandlerNotFoundError => e
      e
    rescue StandardError, ScriptError
      nil # it is there, and has a fault of its own: that shows when it runs
    end

    def constant(name)
      raise not_found(name) unless CLASS_NAME.match?(name)

      Object.const_get(name)
    rescue NameError => e
      # A name that is missing inside the handler's own file is a fault in
      # that file, and says so itself.
      raise if e.is_a?(NoMethodError) || !name.split("::").include?(e.name.to_s)

      raise not_found(name)
    end

    def not_found(name)
      HandlerNotFoundError.new("no class #{name} in this Sidekiq process: define it (in Rails: " \
                               "app/handlers/#{path(name)}.rb), deploy it there, or correct handler_class in the template")
    end

    def path(name)
      name.to_s.delete_prefix("::").gsub("::", "/").gsub(/([a-z\d])([A-Z])/, '\1_\2').downcase
    end
  end
end
