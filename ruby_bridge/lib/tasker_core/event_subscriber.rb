# frozen_string_literal: true

module TaskerCore
  # A class that handles events, a method for each:
  #
  #   class OrderMailer < TaskerCore::EventSubscriber
  #     subscribe_to "task.completed", "step.failed"
  #
  #     def handle_task_completed(event) = Mailer.done(event.data["task_id"]).deliver_later
  #     def handle_step_failed(event) = Mailer.trouble(event).deliver_later
  #   end
  #
  # A dot in an event's name is _ in the method's. +handle_event+ takes what
  # has no method of its own. It is made anew for every event. Events may come
  # twice, see docs/events.md.
  class EventSubscriber
    class << self
      # Subscribes the class; its cursor in Postgres is kept under subscriber_name.
      #
      # @param patterns [Array<String>] names, or such as "task.*"
      # @param options [Hash] from:, on_error:, retries: as of EventPublisher.subscribe
      # @return [void]
      # @raise [ConfigurationError]
      def subscribe_to(*patterns, **options)
        @patterns = patterns.flatten.map { |pattern| EventNames.check_pattern(pattern.to_s) }
        raise ConfigurationError, "#{name}: subscribe_to names no event" if @patterns.empty?

        @options = options
        register
      end

      # @param name [String, nil] nil asks; by default the class's name, Orders::Mailer being orders_mailer
      # @return [String]
      def subscriber_name(name = nil)
        return @subscriber_name || default_name if name.nil?

        before = (@patterns && subscriber_name)
        @subscriber_name = name.to_s
        return @subscriber_name if before.nil?

        EventPublisher.unsubscribe(before)
        register
        @subscriber_name
      end

      # @private
      # @return [EventSubscription]
      def register
        raise ConfigurationError, "#{name || self}: subscribe_to says what it subscribes to" unless @patterns

        EventPublisher.add(EventSubscription.new(name: subscriber_name, patterns: @patterns, handler: EventHandlers::SubscriberClass.new(self), **@options))
      end

      # @private
      # @raise [ConfigurationError] naming a method that is missing
      def check!
        return if method_defined?(:handle_event)

        missing = @patterns.find { |pattern| pattern.end_with?("*") ? no_method_for?(pattern) : !method_defined?(method_name(pattern)) }
        return if missing.nil?

        wanted = missing.end_with?("*") ? "handle_event, and no method for one of them" : "#{method_name(missing)}, nor handle_event"
        raise ConfigurationError, "#{name || self} subscribes to #{missing} and has no public method #{wanted}"
      end

      # @private
      def method_name(event_name) = "handle_#{EventNames.method_suffix(event_name)}"

      private

      def no_method_for?(pattern)
        prefix = method_name(pattern.delete_suffix("*"))
        public_instance_methods(false).none? { |method| method.start_with?(prefix) }
      end

      def default_name
        raise ConfigurationError, "an EventSubscriber without a name of its own needs subscriber_name" unless name

        name.gsub("::", "_").gsub(/([a-z\d])([A-Z])/, '\1_\2').downcase
      end
    end

    # @private
    def dispatch(event)
      method = self.class.method_name(event.name)
      return public_send(method, event) if respond_to?(method)

      handle_event(event) if respond_to?(:handle_event)
    end
  end
end
