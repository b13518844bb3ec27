# frozen_string_literal: true

module TaskerCore
  # The arguments of a job class that runs as a step, out of the template's
  # handler_config:
  #
  #   arguments: [$.context.order_id, $.results.reserve.reservation_id, eu, {record: $.context.order, class: Order}]
  #   keywords: {attempt: $.attempt}
  #
  # A text that begins with "$." names a value, "$$." stands for "$.", and
  # everything else is what it is. Without either key the job gets the context.
  class AdoptedArguments
    # What a path may begin with.
    ROOTS = %w[context results task_id step_id attempt idempotency_key correlation_id].freeze
    # A mapping with this key stands for the record of a GlobalID.
    RECORD = "record"
    # Beside it: the class, or a list of them, that the record must be of.
    CLASS = "class"

    # @param task [TaskContext]
    # @param sequence [StepSequence]
    # @param step [StepContext]
    def initialize(task, sequence, step)
      @task = task
      @sequence = sequence
      @step = step
    end

    # @return [Array<Object>] the job's own copies
    # @raise [PermanentError] with the code arguments_unresolvable, naming the path
    def positional
      return @step.config.key?("keywords") ? [] : [copy(@task.context)] unless @step.config.key?("arguments")

      arguments = @step.config["arguments"]
      raise unresolvable("handler_config.arguments must be a list, not #{arguments.inspect}") unless arguments.is_a?(Array)

      arguments.map { |argument| resolve(argument) }
    end

    # @return [Hash{Symbol => Object}]
    # @raise [PermanentError]
    def keywords
      keywords = @step.config["keywords"] || {}
      raise unresolvable("handler_config.keywords must be a mapping, not #{keywords.inspect}") unless keywords.is_a?(Hash)

      keywords.to_h { |name, value| [name.to_sym, resolve(value)] }
    end

    private

    def resolve(value)
      case value
      when /\A\$\./ then copy(at(value))
      when /\A\$\$\./ then value[1..]
      when Array then value.map { |member| resolve(member) }
      when Hash then record?(value) ? record(*value.values_at(RECORD, CLASS)) : value.transform_values { |member| resolve(member) }
      else copy(value)
      end
    end

    def at(path)
      root, rest = path.delete_prefix("$.").split(".", 2)
      case root
      when "context" then dig(@task.context, rest, path)
      when "results" then dig(*result(rest.to_s, path), path)
      when "correlation_id" then @task.correlation_id
      when "task_id" then @task.task_id
      when "step_id", "attempt", "idempotency_key" then @step.public_send(root)
      else raise unresolvable("#{path} begins with none of #{ROOTS.join(', ')}")
      end
    end

    # Names of steps may have dots: the longest that fits is meant.
    def result(rest, path)
      names = @sequence.dependencies.keys.select { |name| rest == name || rest.start_with?("#{name}.") }
      name = names.max_by(&:size) || rest[/\A[^.]*/]
      raise unresolvable("#{path}: the task has no step #{name.inspect}") unless @sequence.step?(name)

      [@sequence.results_of(name), rest.delete_prefix(name).delete_prefix(".")]
    end

    def dig(value, rest, path)
      rest.to_s.split(".").inject(value) do |inside, key|
        key = Integer(key, 10) if inside.is_a?(Array) && key.match?(/\A\d+\z/)
        found = case inside
                when Hash then inside.key?(key)
                when Array then key.is_a?(Integer) && key < inside.size
                end
        raise unresolvable("#{path}: there is no #{key} in #{inside.is_a?(Hash) ? inside.keys.inspect : inside.class}") unless found

        inside[key]
      end
    end

    def record?(value) = value.key?(RECORD) && (value.keys - [RECORD, CLASS]).empty?

    # The GlobalID comes from the context, which any login that may insert a task writes.
    # So its class is compared by name before any constant is looked up.
    def record(gid, classes)
      raise unresolvable("{record: …} needs the gem globalid, as Rails has it") unless defined?(GlobalID::Locator)

      id = resolve(gid)
      parsed = GlobalID.parse(id) if id.is_a?(String)
      raise unresolvable("#{gid.inspect} is #{id.inspect}, not a GlobalID such as gid://shop/Order/5") unless parsed

      allowed = Array(classes).map(&:to_s) | TaskerCore.config.record_classes.map(&:to_s)
      return GlobalID::Locator.locate(parsed) if allowed.include?(parsed.model_name)

      raise unresolvable("#{gid.inspect} is a record of #{parsed.model_name}, and " \
                         "#{allowed.empty? ? 'no class is allowed' : "only #{allowed.join(', ')} are allowed"}: " \
                         "write {record: …, class: #{parsed.model_name}} in the template, or name the class in config.record_classes")
    end

    # What the attempt was given is frozen, and a job may change its arguments.
    def copy(value) = DeepCopy.call(value)

    def unresolvable(message)
      PermanentError.new("arguments of #{@step.handler_class} in step #{@step.name}: #{message}", error_code: "arguments_unresolvable")
    end
  end
end
