# frozen_string_literal: true

require "time"

module TaskerCore
  module Testing
    # A task that TaskerCore.enqueue_task was asked for while a test recorded them.
    class EnqueuedTask
      ARGUMENTS = TaskRequest.attribute_names
      private_constant :ARGUMENTS

      # @return [Integer] what enqueue_task returned
      attr_reader :task_id
      # @return [Time] by the test's clock
      attr_reader :enqueued_at
      # @return [Run, nil] what became of it, once it was run inline
      attr_accessor :run
      # @private Whether somebody runs it, or has.
      attr_accessor :taken
      # @private Whether it is run when it is due, or only when the test says so.
      attr_reader :inline

      # @!attribute [r] context
      #   @return [Hash] as it would be stored: JSON values, frozen
      # @!attribute [r] run_at
      #   @return [Time, nil]
      ARGUMENTS.each { |name| define_method(name) { @arguments[name] } }

      # @param arguments [Hash{Symbol => Object}] of enqueue_task
      # @raise [TaskRefusedError] the context is not JSON
      def initialize(arguments, inline:)
        @inline = inline
        times = arguments.slice(:run_at, :deadline).transform_values { |time| time.is_a?(String) ? Time.parse(time).utc : time.to_time.utc }
        words = arguments.slice(:namespace, :name, :version, :idempotency_key, :correlation_id, :initiator, :source_system, :reason).transform_values(&:to_s)
        @arguments = { priority: 2, tags: [], **arguments, **times, **words, context: StoredJson.build(arguments.fetch(:context, {}), "the context") }.freeze
        @task_id = Testing.next_id
        @enqueued_at = Testing.clock.now
      rescue InputError => e
        raise TaskRefusedError, e.message
      end

      # @return [String] namespace/name
      def full_name = "#{namespace}/#{name}"

      # @return [Hash{String => Object}] members of the task that its handlers read
      def task
        { "task_id" => task_id, **@arguments.slice(:priority, :correlation_id, :parent_task_id, :tags, :initiator, :source_system, :reason)
                                            .transform_keys(&:name) }
      end

      # @return [String] in words, for messages of failing tests
      def to_s = "#{full_name} with #{context.inspect}"

      def inspect = "#<#{self.class} #{task_id} #{self}>"
    end
  end
end
