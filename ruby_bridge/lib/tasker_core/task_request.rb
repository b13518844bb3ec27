# frozen_string_literal: true

module TaskerCore
  # What is needed to make a task: the template's name, the context, and the
  # options of TaskerCore.enqueue_task.
  #
  #   TaskerCore::TaskRequest.new(namespace: "shop", name: "fulfil_order", context: { order_id: 5 })
  class TaskRequest < Value
    # @!attribute [r] namespace
    #   @return [String] "default" when none was given
    # @!attribute [r] name
    #   @return [String]
    # @!attribute [r] version
    #   @return [String, nil] nil: the latest
    # @!attribute [r] context
    #   @return [Hash{String => Object}] JSON values
    # @!attribute [r] priority
    #   @return [Integer, nil] 1 (goes first) to 4
    # @!attribute [r] run_at
    #   @return [Time, String, nil] not before; nil: at once
    # @!attribute [r] idempotency_key
    #   @return [String, nil] unique per namespace and name
    # @!attribute [r] on_duplicate
    #   @return [String, nil] "return_existing" or "refuse"
    # @!attribute [r] correlation_id
    #   @return [String, nil]
    # @!attribute [r] tags
    #   @return [Array<String>, nil]
    # @!attribute [r] initiator
    #   @return [String, nil]
    # @!attribute [r] source_system
    #   @return [String, nil]
    # @!attribute [r] reason
    #   @return [String, nil]
    # @!attribute [r] deadline
    #   @return [Time, String, nil] after which the task fails, whatever is still to do
    # @!attribute [r] parent_task_id
    #   @return [Integer, nil] the task whose step enqueues this one
    # @!attribute [r] bypass_steps
    #   @return [Array<String>, nil] names of steps that are skipped from the start
    attributes :namespace, :name, :version, :context, :priority, :run_at, :idempotency_key, :on_duplicate, :correlation_id,
               :tags, :initiator, :source_system, :reason, :deadline, :parent_task_id, :bypass_steps

    # Other names, as Hashes from elsewhere have them.
    ALIASES = { "namespace_name" => :namespace }.freeze

    # @param request [TaskRequest, Hash{String, Symbol => Object}]
    # @return [TaskRequest]
    # @raise [ValidationError] naming what is wrong
    def self.from(request)
      return request if request.is_a?(TaskRequest)
      return new(**request.to_hash.transform_keys { |key| attribute(key) }) if request.respond_to?(:to_hash)

      raise ValidationError, "a task request is a TaskerCore::TaskRequest or a Hash, not #{request.inspect}"
    end

    def self.attribute(key)
      ALIASES[key.to_s] || attribute_names.find { |name| name.name == key.to_s } ||
        raise(ValidationError, "a task request has no #{key}#{NearNames.hint(key, attribute_names)}")
    end
    private_class_method :attribute

    # @raise [ValidationError] the name is missing, the context is no Hash or not JSON, …
    def initialize(**attributes)
      attributes = { namespace: "default", context: {} }.merge(attributes.compact)
      super(**attributes, context: context_of(attributes[:context]), **texts(attributes), **lists(attributes), **times(attributes))
      raise ValidationError, "a task request needs a name, that of a template" if name.nil? || name.empty?
    end

    # @return [Hash{Symbol => Object}] for TaskerCore.enqueue_task
    def to_arguments = to_h.compact

    private

    # A copy, as it will be frozen: what it is made of belongs to the caller.
    def context_of(context)
      raise ValidationError, "the context of a task is a Hash, not #{context.class}" unless context.is_a?(Hash)

      DeepCopy.call(JsonTree.build(context))
    rescue JsonTree::Refused => e
      raise TaskRefusedError, "the context is not JSON: #{e.message}"
    end

    def times(attributes) = attributes.slice(:run_at, :deadline).transform_values(&:dup)

    def texts(attributes)
      attributes.slice(:namespace, :name, :version, :idempotency_key, :on_duplicate, :correlation_id, :initiator, :source_system, :reason)
                .transform_values { |value| value.to_s.dup }
    end

    def lists(attributes)
      attributes.slice(:tags, :bypass_steps).transform_values { |values| Array(values).map { |value| value.to_s.dup } }
    end
  end
end
