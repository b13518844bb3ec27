# frozen_string_literal: true

module TaskerCore
  # The three kinds of code that may handle events.
  module EventHandlers
    # A block.
    class Block
      def initialize(block)
        @block = block
      end

      def call(event) = @block.call(event)

      def check!(_patterns); end

      # A file that is loaded again replaces what it subscribed before.
      def origin = @block.source_location || @block
    end

    # An object with methods like on_task_completed. Events that it has no
    # method for are let go by.
    class Listener
      # @param object [Object]
      # @return [Array<String>] the engine's events that it has methods for
      def self.patterns_of(object)
        (EventNames::CATALOGUE + EventNames::ALIASES.keys).select { |name| object.respond_to?(method_name(name)) }
      end

      def self.method_name(name) = "on_#{EventNames.method_suffix(name)}"

      def initialize(object)
        @object = object
      end

      def call(event)
        method = self.class.method_name(event.name)
        @object.public_send(method, event) if @object.respond_to?(method)
      end

      def check!(patterns)
        missing = patterns.reject { |pattern| pattern.end_with?("*") || @object.respond_to?(self.class.method_name(pattern)) }
        return if missing.empty?

        raise ConfigurationError, "#{@object.class} subscribes to #{missing.first} and has no public method #{self.class.method_name(missing.first)}"
      end

      def origin = @object.class.name || @object
    end

    # A subclass of EventSubscriber, looked up by its name for every event:
    # classes are reloaded in development.
    class SubscriberClass
      def initialize(subscriber)
        @subscriber = subscriber
      end

      def call(event) = current.new.dispatch(event)

      def check!(_patterns) = current.check!

      def origin = @subscriber.name || @subscriber

      # A class that was reloaded is the same handler.
      def ==(other) = other.is_a?(self.class) && other.origin == origin

      private

      def current = @subscriber.name ? Object.const_get(@subscriber.name) : @subscriber
    end
  end
end
