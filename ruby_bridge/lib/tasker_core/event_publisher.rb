# frozen_string_literal: true

module TaskerCore
  # Events, both ways: what happened to tasks and steps, for whoever subscribes,
  # and events of the app's own.
  #
  #   TaskerCore::EventPublisher.subscribe do |event|
  #     case event.name
  #     when "task.failed" then ErrorNotificationService.alert(event.data)
  #     end
  #   end
  #
  # Subscribing says what shall be done; it is done where EventPublisher.run or
  # .start was called, in one process at a time (rake tasker:events is one).
  # A subscriber has a name, and its cursor is in Postgres: it loses nothing
  # over restarts, and what it has not acknowledged comes again. docs/events.md
  # has the names, the guarantees and the limits.
  module EventPublisher
    @subscriptions = {}
    @mutex = Mutex.new

    class << self
      # @param what [Array<String, Object>] patterns ("step.completed", "task.*"; none: all events), and
      #   in the place of a block an object with methods like on_task_completed, or an EventSubscriber class
      # @param name [String, nil] of the subscriber. nil: "default", or the name of the object's class
      # @param from [Symbol] where a subscriber starts that Postgres doesn't know yet: :now, when it
      #   first runs, or :beginning
      # @param on_error [Symbol] when the handler fails: :hold tries the event again for ever, ever more
      #   rarely, and what comes after it waits; :skip lets it go after some tries
      # @param retries [Integer] how many, with :skip
      # @yieldparam event [Event]
      # @return [EventSubscription]
      # @raise [ConfigurationError]
      def subscribe(*what, name: nil, from: :now, on_error: :hold, retries: 5, &block)
        patterns, objects = what.flatten.partition { |item| item.is_a?(String) || item.is_a?(Symbol) }
        return objects.first.register if !block && objects.size == 1 && subscriber_class?(objects.first)
        raise ConfigurationError, "subscribe takes a block, or one object with methods like on_task_completed" unless objects.size == (block ? 0 : 1)

        object = objects.first
        handler = block ? EventHandlers::Block.new(block) : EventHandlers::Listener.new(object)
        patterns = object ? patterns_of(object) : ["*"] if patterns.empty?
        add EventSubscription.new(name: name || (object && name_of(object)) || "default", patterns:, handler:, from:, on_error:, retries:)
      end

      # @param name [String, EventSubscription]
      # @param forget [Boolean] drops the cursor in Postgres as well
      # @return [void]
      # @raise [DatabaseError]
      def unsubscribe(name, forget: false)
        name = name.name if name.is_a?(EventSubscription)
        @mutex.synchronize { @subscriptions = @subscriptions.except(name) }
        TaskerCore.event_runner&.stop([name])
        EventProtocol.new(TaskerCore.database).unsubscribe(name) if forget
      end

      # Publishes an event of the app's own, in the transaction of whoever calls.
      #
      #   TaskerCore::EventPublisher.publish("order.fulfilled", { order_id: order.id }, step:)
      #
      # @param name [String] not one of the engine's: see EventNames::RESERVED
      # @param data [Hash] JSON, up to 64 KiB
      # @param task [TaskContext, Integer, nil] the task that it is about
      # @param step [StepContext, Integer, nil] the step, and so its task
      # @param connection [PG::Connection, ActiveRecord::ConnectionAdapters::AbstractAdapter, nil] nil:
      #   that of ActiveRecord::Base; without ActiveRecord, one of the gem's own, at once
      # @return [Integer] the event's id
      # @raise [EventRefusedError] nothing was written
      def publish(name, data = {}, task: nil, step: nil, connection: nil) = EventPublication.new(name, data, task:, step:).call(connection)

      # @return [Array<EventSubscription>]
      def subscriptions = @subscriptions.values

      # Starts the subscribers of this process, on threads; those that are
      # subscribed later start when they are.
      #
      # @return [void]
      # @raise [ConfigurationError] naming a method that a subscriber lacks
      def start
        load_app
        subscriptions.each(&:check!)
        TaskerCore.start_event_runner
        subscriptions.each { |subscription| TaskerCore.event_runner.start(subscription) }
      end

      # Ends them, each after the event that it is handling.
      #
      # @param timeout [Numeric] seconds
      # @return [void]
      def stop(timeout: 20) = TaskerCore.stop_event_runner(timeout)

      # Runs the subscribers until the process gets TERM or INT.
      #
      # @return [void]
      # @raise [ConfigurationError]
      def run
        start
        raise ConfigurationError, "nobody subscribes to events: call TaskerCore::EventPublisher.subscribe while the app is loaded" if subscriptions.empty?

        TaskerCore.logger.info { "tasker: events for #{subscriptions.map(&:name).join(', ')}" }
        wait_for_signal
        stop
      end

      # Passes events on to ActiveSupport::Notifications, "task.completed" as
      # "task.completed.tasker" with Event#to_h for payload.
      #
      # @return [EventSubscription] durable, like any other
      def bridge_notifications(*patterns, name: "active_support_notifications", **options)
        raise ConfigurationError, "bridge_notifications needs ActiveSupport" unless defined?(ActiveSupport::Notifications)

        subscribe(*patterns, name:, **options) { |event| ActiveSupport::Notifications.instrument("#{event.name}.tasker", event.to_h) }
      end

      # Passes events on to a publisher of dry-events, with Event#to_h for payload.
      #
      # @param publisher [#publish, #register_event] an instance of a class that
      #   includes Dry::Events::Publisher
      # @return [EventSubscription] durable, like any other
      def bridge_dry_events(publisher, *patterns, name: "dry_events", **options)
        registered = {}
        subscribe(*patterns, name:, **options) do |event|
          # dry-events refuses what was not registered.
          registered[event.name] ||= publisher.register_event(event.name) || true
          publisher.publish(event.name, event.to_h)
        end
      end

      # @private
      # @return [EventSubscription]
      def add(subscription)
        @mutex.synchronize do
          other = @subscriptions[subscription.name]
          return other if other && other.settings == subscription.settings

          if other && other.origin != subscription.origin
            raise ConfigurationError, "there is a subscriber #{subscription.name.inspect} already (#{Array(other.origin).join(':')}): " \
                                      "give this one a name of its own, name: \"…\""
          end
          @subscriptions = @subscriptions.merge(subscription.name => subscription)
        end
        restart(subscription) if TaskerCore.event_runner
        subscription
      end

      private

      def restart(subscription)
        TaskerCore.event_runner.stop([subscription.name])
        TaskerCore.event_runner.start(subscription)
      end

      def subscriber_class?(object) = object.is_a?(Class) && object < EventSubscriber

      def patterns_of(object)
        EventHandlers::Listener.patterns_of(object).tap do |patterns|
          next unless patterns.empty?

          raise ConfigurationError, "#{object.class} has no method like on_task_completed for any of the engine's events; for events of your own, name them"
        end
      end

      def name_of(object) = object.class.name&.gsub("::", "_")&.gsub(/([a-z\d])([A-Z])/, '\1_\2')&.downcase

      # Subscribers in folders that are loaded lazily must be known.
      def load_app
        Rails.application.eager_load! if defined?(Rails) && Rails.respond_to?(:application) && Rails.application
      end

      def wait_for_signal
        reader, writer = IO.pipe
        before = %w[TERM INT].to_h { |signal| [signal, trap(signal) { writer.write_nonblock(".", exception: false) }] }
        reader.wait_readable
      ensure
        before&.each { |signal, handler| trap(signal, handler || "DEFAULT") }
      end
    end
  end
end
