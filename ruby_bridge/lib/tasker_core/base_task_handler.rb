# frozen_string_literal: true

require "yaml"

module TaskerCore
  # What a template's +task_handler_class+ inherits from: makes tasks of that
  # template, and asks for their run. A template without a class has this one.
  #
  #   class Orders::Fulfil < TaskerCore::BaseTaskHandler
  #     task_template namespace: "shop", name: "fulfil_order"
  #
  #     def validate_context(context)
  #       raise TaskerCore::ValidationError, "an order_id is needed" unless context["order_id"]
  #     end
  #   end
  #
  #   Order.transaction do
  #     order = Order.create!(…)
  #     Orders::Fulfil.enqueue({ order_id: order.id })
  #   end # the task starts if and only if this commits
  #
  # Subclasses define hooks (#validate_context, #before_initialize,
  # #after_initialize), and nothing that runs later: a task runs in workers and
  # Sidekiq, not here. What is to follow its end subscribes to its events.
  class BaseTaskHandler
    FINAL = %i[initialize_task handle].freeze

    class << self
      # Which template this handler is for, where no YAML says it.
      #
      # @param name [String]
      # @param namespace [String]
      # @param version [String, nil] nil: the latest
      # @return [void]
      def task_template(name:, namespace: "default", version: nil)
        @task_template = { "namespace_name" => namespace.to_s, "name" => name.to_s, "version" => version&.to_s }.compact.freeze
      end

      # @private
      def own_template = @task_template || (superclass.own_template if superclass.respond_to?(:own_template))

      # Makes a task.
      #
      # @param context [Hash] what the task is about
      # @param connection (see BaseTaskHandler#initialize_task)
      # @param options [Hash] those of TaskRequest, such as +idempotency_key:+
      # @return [TaskInitializationResult]
      # @raise (see BaseTaskHandler#initialize_task)
      def enqueue(context = {}, connection: nil, **options)
        stray = options.keys.find { |key| !TaskRequest.attribute_names.include?(key) }
        raise ValidationError, "#{stray} is no option of a task; the context goes into braces: enqueue({ #{stray}: … })" if stray

        new.initialize_task({ context:, **options }, connection:)
      end

      # @private
      def method_added(name)
        super
        return unless FINAL.include?(name) && self != BaseTaskHandler

        raise ConfigurationError, "#{self} must not define #{name}: define validate_context, before_initialize or after_initialize"
      end
    end

    # @return [Hash{String => Object}] the template, with the keys of its YAML; what it leaves out is left out
    attr_reader :yaml_template

    # @param yaml_template [String, Hash{String => Object}, nil] text of a template, or what it
    #   holds; nil: the one that task_template names
    # @raise [ConfigurationError] it is no template
    def initialize(yaml_template = nil)
      @yaml_template = yaml_template.nil? ? self.class.own_template || {} : TemplateFile.parse(yaml_template)
    end

    # @return [String, nil] nil: a request has to say it
    def name = yaml_template["name"]

    # @return [String]
    def namespace = yaml_template.fetch("namespace_name", "default")

    # @return [String, nil] nil: the latest
    def version = yaml_template["version"]

    # Makes the task with its steps, in the transaction of the connection. When
    # a hook raises, nothing is written; where no transaction is open, one is
    # opened for that.
    #
    # @param task_request [TaskRequest, Hash{String, Symbol => Object}] what it doesn't say of the
    #   template is this handler's
    # @param attributes [Hash] the request, when it comes without braces
    # @param connection [PG::Connection, ActiveRecord::ConnectionAdapters::AbstractAdapter, nil]
    #   nil: that of ActiveRecord::Base
    # @return [TaskInitializationResult] of the task that there is already, when the idempotency key is taken
    # @raise [ValidationError] the request is for another template, a hook refused it, or the engine
    #   did (TaskRefusedError)
    def initialize_task(task_request = nil, connection: nil, **attributes)
      request = completed(task_request || attributes)
      validate_context(request.context)
      changed = before_initialize(request)
      request = changed if changed.is_a?(TaskRequest)
      in_transaction(connection || active_record) do |open|
        task_id, steps = TaskerCore.enqueuing.new(request.to_arguments).call_with_steps(open)
        TaskInitializationResult.new(task_id:, step_count: steps.size, step_mapping: steps).tap { |result| after_initialize(result) }
      end
    end

    # Asks for a run, see WorkflowCoordinator#execute_task_workflow: a task whose
    # transaction has committed runs by itself.
    #
    # @param task_id [Integer]
    # @param wait [Boolean] whether to wait for the task's end
    # @param timeout [Numeric] seconds to wait
    # @return [TaskResult] as the task is now, or at its end
    # @raise [TaskNotFoundError]
    # @raise [TimeoutError] the task goes on all the same
    def handle(task_id, wait: false, timeout: 60)
      coordinator = WorkflowCoordinator.new
      result = coordinator.execute_task_workflow(task_id)
      wait ? coordinator.wait(task_id, timeout:) : result
    end

    # Hook: refuses a context. The template's JSON Schema is checked by the
    # database; this is for what a schema can't say.
    #
    # @param context [Hash{String => Object}] JSON values, frozen
    # @return [void]
    # @raise [ValidationError]
    def validate_context(context); end

    # Hook: before the task is made.
    #
    # @param task_request [TaskRequest] frozen
    # @return [TaskRequest, Object] one to take instead, such as task_request.with(priority: 1); all else is ignored
    def before_initialize(task_request); end

    # Hook: once the task is made, in its transaction. To raise undoes it.
    #
    # @param result [TaskInitializationResult]
    # @return [void]
    def after_initialize(result); end

    private

    def completed(task_request)
      given = task_request.is_a?(TaskRequest) ? task_request.to_arguments : task_request
      raise ValidationError, "a task request is a TaskerCore::TaskRequest or a Hash, not #{given.inspect}" unless given.respond_to?(:to_hash)

      given = given.to_hash.compact.transform_keys { |key| TaskRequest::ALIASES.fetch(key.to_s, key.to_sym) }
      request = TaskRequest.from({ namespace:, name:, version: }.compact.merge(given))
      return request if name.nil? || [request.namespace, request.name] == [namespace, name]

      raise ValidationError, "the request is for #{request.namespace}/#{request.name}, and #{self.class} makes tasks of #{namespace}/#{name}"
    end

    def active_record
      unless defined?(ActiveRecord::Base)
        raise ConfigurationError, "initialize_task needs ActiveRecord, connected to tasker's database, or a connection: of yours"
      end

      ActiveRecord::Base.respond_to?(:lease_connection) ? ActiveRecord::Base.lease_connection : ActiveRecord::Base.connection
    end

    # The insert is one statement, and needs no more. With a hook after it, what
    # was inserted has to go when the hook raises, also where the caller rescues
    # that and goes on.
    def in_transaction(connection)
      return yield(connection) if method(:after_initialize).owner == BaseTaskHandler
      return connection.transaction(requires_new: true) { yield(connection) } unless connection.respond_to?(:exec_params)
      return connection.transaction { yield(connection) } if connection.transaction_status == PG::PQTRANS_IDLE

      begin
        connection.exec("SAVEPOINT tasker_task")
        yield(connection).tap { connection.exec("RELEASE SAVEPOINT tasker_task") }
      rescue StandardError
        connection.exec("ROLLBACK TO SAVEPOINT tasker_task")
        raise
      end
    end
  end
end
