# frozen_string_literal: true

module TaskerCore
  # Which serializers of ActiveJob may write and read the values that travel with a task.
  # ActiveJob itself calls any class that "_aj_serialized" names.
  class HeaderSerializers
    # Member of a serialized value.
    MEMBER = "_aj_serialized"
    # All make plain values. ModuleSerializer, which finds any class, is left out.
    PLAIN = %w[Symbol Duration DateTime Date TimeWithZone Time BigDecimal Range].map { |name| "ActiveJob::Serializers::#{name}Serializer" }.freeze

    class << self
      # @raise [ConfigurationError]
      def check(names)
        return if names.is_a?(Array) && names.all? { |name| CurrentValues::NAME.match?(name.to_s) }

        raise ConfigurationError, "headers_serializers must be names of classes, such as [\"MoneySerializer\"], not #{names.inspect}"
      end
    end

    # @param config [Configuration]
    def initialize(config) = @allowed = PLAIN + config.headers_serializers.map(&:to_s)

    # @param value [Object] what ActiveJob wrote
    # @return [String, nil] the first serializer in it that may not be used
    def refused(value)
      case value
      when Array then value.each { |member| (name = refused(member)) && (return name) }
      when Hash
        name = value[MEMBER]
        return name.to_s if value.key?(MEMBER) && !@allowed.include?(name)

        return refused(value.values)
      end
      nil
    end
  end
end
