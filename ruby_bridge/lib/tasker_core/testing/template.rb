# frozen_string_literal: true

require "pathname"

module TaskerCore
  module Testing
    # A template, as far as a run in a test needs it: its overlay merged in, its
    # defaults filled in. It refuses what it can't interpret; whether a template is
    # sound is for `tasker template validate` to say, which knows far more rules.
    class Template
      KEYS = %w[name namespace_name version description task_handler_class schema max_parallel_steps on_failure deadline_seconds
                idempotency retry step_templates environments].freeze
      STEP_KEYS = %w[name description handler_class handler depends_on_step depends_on_steps default_retryable default_retry_limit retry
                     timeout_seconds schedule_to_start_seconds heartbeat_seconds queue limit_key handler_config skippable bypassable result_schema].freeze
      RETRY_KEYS = { "backoff" => "exponential", "base_seconds" => 1, "cap_seconds" => 300, "jitter" => 0.1, "retry_after_cap_seconds" => 3600 }.freeze
      BACKOFFS = %w[none fixed linear exponential fibonacci].freeze
      # An overlay that gives one of these takes the others away.
      CHOICES = [%w[handler_class handler], %w[depends_on_step depends_on_steps]].freeze

      FILE = /\A[^\n]+\.ya?ml\z/
      private_constant :KEYS, :STEP_KEYS, :RETRY_KEYS, :BACKOFFS, :CHOICES, :FILE

      # One step of it.
      Step = Struct.new(:name, :handler_class, :handler, :depends_on, :attempt_limit, :retryable, :retry_policy, :timeout_seconds,
                        :heartbeat_seconds, :config, :skippable, keyword_init: true) do
        # @return [Integer] attempts that it may use up
        def limit = retryable ? attempt_limit : 1
      end

      # @param source [Template, Hash, String, Pathname] a template, a file whose name ends with .yaml or .yml, or YAML
      # @param environment [String, nil] names the overlay
      # @param variables [Hash{String => String}] what ${NAME} in it stands for
      # @return [Template]
      # @raise [TemplateError] with file, line and column
      def self.read(source, environment: Testing.environment, variables: {})
        case source
        when Template then source
        when Hash then new(YamlTree.new(JSON.generate(JsonTree.build(source)), file: "(Hash)", variables:), environment)
        when FILE, Pathname then new(YamlTree.new(File.read(source), file: source.to_s, variables:), environment)
        else new(YamlTree.new(source, file: "(YAML)", variables:), environment)
        end
      rescue Errno::ENOENT
        raise TemplateError, "there is no file #{File.expand_path(source)}"
      end

      # @return [String]
      attr_reader :namespace, :name, :version
      # @return [Integer]
      attr_reader :max_parallel_steps
      # @return [Numeric, nil] nil: none
      attr_reader :deadline_seconds
      # @return [Array<Step>]
      attr_reader :steps

      # @private
      def initialize(tree, environment)
        @tree = tree
        root = mapping([], tree.value, KEYS)
        @overlaid = overlay(root, environment)
        @namespace = typed(@overlaid, "namespace_name", String) || "default"
        @name = typed(@overlaid, "name", String) || refuse([], "the template has no name")
        @version = typed(@overlaid, "version", String) || "0.1.0"
        @max_parallel_steps = typed(@overlaid, "max_parallel_steps", Integer) || 10
        @on_failure = one_of(@overlaid, "on_failure", %w[continue fail_fast])
        @deadline_seconds = duration(@overlaid, "deadline_seconds")
        policy = retry_policy(@overlaid, [], RETRY_KEYS)
        @steps = Array(typed(@overlaid, "step_templates", Array)).map.with_index { |step, index| step(step, ["step_templates", index], policy) }
        refuse(["step_templates"], "a template needs a step") if @steps.empty?
        check_dependencies
        @tree = @overlaid = nil
        freeze
      end

      # @return [Boolean]
      def fail_fast? = @on_failure == "fail_fast"

      # @return [String] namespace/name@version
      def full_name = "#{namespace}/#{name}@#{version}"

      private

      def step(raw, path, policy)
        mapping(path, raw, STEP_KEYS)
        name = typed(raw, "name", String, path) || refuse(path, "a step has no name")
        unless raw["handler_class"].nil? ^ raw["handler"].nil?
          refuse(path, "step #{name.inspect} must have a handler_class (a Ruby class) or a handler (a Go handler), one of the two")
        end
        Step.new(name:, handler_class: typed(raw, "handler_class", String, path), handler: typed(raw, "handler", String, path),
                 depends_on: [typed(raw, "depends_on_step", String, path), *typed(raw, "depends_on_steps", Array, path)].compact.uniq,
                 retryable: truth(raw, "default_retryable", true, path), skippable: truth(raw, "skippable", false, path),
                 attempt_limit: typed(raw, "default_retry_limit", Integer, path) || 3,
                 retry_policy: RetryPolicy.new(*retry_policy(raw, path, policy).fetch_values("backoff", "base_seconds", "cap_seconds",
                                                                                             "retry_after_cap_seconds")),
                 timeout_seconds: duration(raw, "timeout_seconds", path), heartbeat_seconds: duration(raw, "heartbeat_seconds", path),
                 config: StoredJson.build(typed(raw, "handler_config", Hash, path) || {}, "handler_config")).freeze
      end

      def retry_policy(raw, path, default)
        policy = mapping([*path, "retry"], raw["retry"] || {}, RETRY_KEYS.keys).compact
        one_of(policy, "backoff", BACKOFFS, [*path, "retry"])
        policy.except("backoff").each_key { |key| typed(policy, key, Numeric, [*path, "retry"]) }
        default.merge(policy)
      end

      def check_dependencies
        known = steps.to_h { |step| [step.name, step] }
        steps.each_with_index do |step, index|
          path = ["step_templates", index]
          refuse([*path, "name"], "there are two steps #{step.name.inspect}") unless known[step.name].equal?(step)
          unknown = (step.depends_on - known.keys).first
          refuse(path, "step #{step.name.inspect} depends on #{unknown.inspect}, and there is no such step; the steps are #{known.keys.join(', ')}") if unknown
        end
        left = steps
        loop do
          held = left.select { |step| left.any? { |other| step.depends_on.include?(other.name) } }
          break if held.size == left.size

          left = held
        end
        refuse(["step_templates"], "steps depend on one another in a circle, among #{left.map(&:name).join(', ')}") if left.any?
      end

      # Mappings are merged key by key, steps by name, all else is replaced; null removes.
      def overlay(root, environment)
        overlays = typed(root, "environments", Hash) || {}
        changes = overlays[environment] or return root
        path = ["environments", environment]
        mapping(path, changes, KEYS - %w[name namespace_name version environments])
        merged = merge(root, changes.except("step_templates"))
        merged["step_templates"] = Array(changes["step_templates"]).each_with_index.reduce(merged["step_templates"]) do |steps, (change, index)|
          at = steps.index { |step| step["name"] == change["name"] } or
            refuse([*path, "step_templates", index], "the overlay changes step #{change['name'].inspect}, and there is no such step")
          taken = CHOICES.select { |keys| keys.any? { |key| change.key?(key) } }.flatten
          steps.dup.tap { |list| list[at] = merge(steps[at].except(*taken), change) }
        end
        merged
      end

      def merge(base, change)
        return change unless base.is_a?(Hash) && change.is_a?(Hash)

        base.merge(change) { |_, old, new| merge(old, new) }.compact
      end

      def mapping(path, raw, keys)
        refuse(path, "here must be a mapping, not #{raw.inspect}") unless raw.is_a?(Hash)
        unknown = (raw.keys - keys).first
        refuse([*path, unknown], "unknown key #{unknown.inspect}; the keys are #{keys.join(', ')}") if unknown
        raw
      end

      def typed(raw, key, type, path = [])
        value = raw[key]
        value.nil? || value.is_a?(type) ? value : refuse([*path, key], "#{key} can't be #{value.inspect}; wanted: #{type}")
      end

      def truth(raw, key, default, path)
        value = raw[key].nil? ? default : raw[key]
        [true, false].include?(value) ? value : refuse([*path, key], "#{key} must be true or false, not #{value.inspect}")
      end

      def one_of(raw, key, words, path = [])
        value = raw[key]
        value.nil? || words.include?(value) ? value : refuse([*path, key], "unknown #{key} #{value.inspect}; there are #{words.join(', ')}")
      end

      # 0 is none.
      def duration(raw, key, path = []) = typed(raw, key, Numeric, path).then { |seconds| seconds if seconds&.positive? }

      def refuse(path, problem)
        raise TemplateError, "#{@tree.place(path)}: #{problem} (tasker template validate tells all that is wrong)"
      end
    end
  end
end
