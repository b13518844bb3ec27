# frozen_string_literal: true

require "json"

module TaskerCore
  # Values of ActiveSupport::CurrentAttributes, from where a task is enqueued to
  # its handlers. They travel in the task's carrier, in Postgres, and not in its
  # context: they are no part of what the task is about.
  #
  # Written with ActiveJob's arguments where ActiveJob is there, so that records
  # travel as GlobalIDs, and are found again or missed when a handler starts.
  #
  # They are signed, as text: see HeaderKeys. ActiveJob reads nothing that is not.
  class CurrentValues
    # Member of the carrier.
    MEMBER = "current_attributes"
    NAME = /\A[A-Z]\w*(::[A-Z]\w*)*\z/

    class << self
      # @raise [ConfigurationError]
      def check(setting)
        names = setting.is_a?(Hash) || setting.is_a?(Array) ? normalized(setting) : nil
        wrong = names&.find { |name, attributes| !NAME.match?(name) || !(attributes.nil? || attributes.is_a?(Array)) }
        return if names && !wrong

        raise ConfigurationError, "current_attributes must be names of classes, such as [\"Current\"], or with their attributes, " \
                                  "such as { \"Current\" => [:user] }, not #{(wrong || setting).inspect}"
      end

      # @return [CurrentValues, nil] nil: none are configured
      def for(config) = config.current_attributes.any? ? new(normalized(config.current_attributes), config) : nil

      # @return [Hash] the carrier's part of a task that is being enqueued
      # @raise [TaskRefusedError] a value can't travel
      # @raise [ConfigurationError] there are values, and no key to sign them with
      def carrier(namespace, name, config = TaskerCore.config)
        values = self.for(config)&.values
        return {} unless values&.any?

        text = JSON.generate(JsonTree.build({ "codec" => codec, "values" => values }), max_nesting: 0)
        { MEMBER => config.header_keys.sign(text, namespace.to_s, name.to_s) }
      end

      def codec = active_job? ? "active_job" : "json"

      # With Base, which may still have to be loaded, comes Arguments.
      def active_job? = defined?(ActiveJob::Base) && ActiveJob::Base ? true : false

      private

      def normalized(setting)
        return setting.to_h { |name, attributes| [name.to_s, attributes.is_a?(Array) ? attributes.map(&:to_sym) : attributes] } if setting.is_a?(Hash)

        setting.map(&:to_s).to_h { |name| [name, nil] }
      end
    end

    # @param classes [Hash{String => Array<Symbol>, nil}] nil: all attributes
    # @param config [Configuration]
    def initialize(classes, config)
      @classes = classes
      @config = config
      @serializers = HeaderSerializers.new(config)
    end

    # @return [Hash{String => Hash{String => Object}}] what is set now, by class and attribute, as JSON values
    def values
      @classes.each_with_object({}) do |(name, only), values|
        set = find(name).instance.attributes.compact.transform_keys(&:to_sym)
        set = set.slice(*only) if only
        values[name] = set.to_h { |attribute, value| [attribute.name, dump(value, "#{name}.#{attribute}")] } if set.any?
      end
    end

    # As a layer of HandlerSurroundings. Afterwards the classes are as they were.
    #
    # @raise [HeadersRefusedError] the values are not signed, or can't be read: the handler
    #   does not run, for without them it might work for another tenant or for none
    def call(task, _step)
      sent = received(task)
      before = @classes.keys.map { |name| find(name) }.map { |current| [current, current.instance.attributes.dup] }
      before.each { |current, _| assign(current, sent.fetch(current.name, {})) }
      yield
    ensure
      before&.each { |current, attributes| assign(current, attributes) }
    end

    private

    # @return [Hash{String => Hash{String => Object}}] the configured classes and attributes among what the task carries
    def received(task)
      signed = TaskCarrier.of(task)[MEMBER]
      return {} if signed.nil?

      sent = JSON.parse(@config.header_keys.verify(signed, task.namespace, task.name), max_nesting: false)
      configured(sent["values"], task).transform_values { |values| load(values, sent["codec"]) }
    rescue HeadersRefusedError => e
      text = "the CurrentAttributes of task #{task.task_id} are refused: #{e.message}"
      TaskerCore.logger.warn { "tasker: #{text}" }
      raise HeadersRefusedError, text
    end

    def configured(values, task)
      chosen = values.slice(*@classes.keys).to_h do |name, attributes|
        only = @classes[name]&.map(&:name)
        [name, only ? attributes.slice(*only) : attributes]
      end
      left = values.flat_map { |name, attributes| (attributes.keys - chosen.fetch(name, {}).keys).map { |attribute| "#{name}.#{attribute}" } }
      TaskerCore.logger.warn { "tasker: task #{task.task_id} carries #{left.join(', ')}, which config.current_attributes does not name: left out" } if left.any?
      chosen
    end

    # By name, for they are reloaded in development.
    def find(name)
      Object.const_get(name)
    rescue NameError => e
      raise unless name.split("::").include?(e.name.to_s)

      raise ConfigurationError, "config.current_attributes names #{name}, and there is no such class: define it, or correct the setting"
    end

    # Through the writers, which may do more than store.
    def assign(current, attributes)
      current.reset
      attributes.each do |attribute, value|
        next current.public_send(:"#{attribute}=", value) if current.respond_to?(:"#{attribute}=")

        TaskerCore.logger.warn { "tasker: #{current} has no attribute #{attribute} any more: the value that a task carries is left out" }
      end
    end

    def dump(value, name)
      return JsonTree.build(value) if self.class.codec == "json"

      dumped = ActiveJob::Arguments.serialize([value]).first
      refused = @serializers.refused(dumped)
      raise TaskRefusedError, "#{refused} is not in config.headers_serializers" if refused

      dumped
    rescue StandardError => e
      raise TaskRefusedError, "#{name} can't travel with a task: #{e.message} – name the attributes that shall: " \
                              "config.current_attributes = { #{name[/.*(?=\.)/].inspect} => [:…] }"
    end

    def load(values, codec)
      return values if codec != "active_job"
      raise ConfigurationError, "the task carries values that ActiveJob wrote: load it in this process" unless self.class.active_job?

      refused = @serializers.refused(values)
      raise HeadersRefusedError, "#{refused} wrote one, which is not in config.headers_serializers" if refused

      values.transform_values { |value| ActiveJob::Arguments.deserialize([value]).first }
    end
  end
end
