# frozen_string_literal: true

require "openssl"

module TaskerCore
  # Signs the values that travel with a task, and checks the signature before they are read.
  #
  # Any login that may insert a task can write its carrier. Without a signature such a login
  # would choose the tenant, the user or the classes that a handler's process works with.
  class HeaderKeys
    # Bytes. A shorter key could be guessed.
    SHORTEST = 32
    # For Rails' key generator.
    SALT = "tasker_core headers"
    MISSING = "values of CurrentAttributes travel signed, and there is no key: set config.headers_keys = [key], " \
              "with at least #{SHORTEST} bytes such as SecureRandom.hex(32), the same in each process " \
              "that enqueues tasks or runs handlers".freeze

    class << self
      # @param config [Configuration]
      # @return [HeaderKeys]
      # @raise [ConfigurationError] there is no key
      def for(config) = new(config.headers_keys || [of_rails])

      # @raise [ConfigurationError]
      def check(keys)
        return if keys.nil?
        return if keys.is_a?(Array) && keys.any? && keys.all? { |key| key.is_a?(String) && key.bytesize >= SHORTEST }

        # The keys themselves don't belong into a log.
        raise ConfigurationError, "headers_keys must be a list of Strings of at least #{SHORTEST} bytes: the first signs, all verify"
      end

      private

      def of_rails
        application = Rails.application if defined?(Rails) && Rails.respond_to?(:application)
        raise ConfigurationError, MISSING unless application.respond_to?(:key_generator)

        application.key_generator.generate_key(SALT, SHORTEST)
      rescue ArgumentError => e # Rails has no secret_key_base
        raise ConfigurationError, "#{MISSING}. In Rails secret_key_base is enough: #{e.message}"
      end
    end

    # @param keys [Array<String>] the first signs, all verify
    def initialize(keys)
      @keys = keys.to_h { |key| [OpenSSL::HMAC.hexdigest("SHA256", key, "key id")[0, 16], key] }
    end

    # @param text [String] JSON
    # @return [Hash{String => String}] the text with its signature: a string, which jsonb keeps as it is
    def sign(text, namespace, name)
      id, key = @keys.first
      { "text" => text, "key" => id, "mac" => mac(key, text, namespace, name) }
    end

    # @param signed [Object] what #sign returned, or what another wrote in its place
    # @return [String] the text
    # @raise [HeadersRefusedError]
    def verify(signed, namespace, name)
      text, id, mac = signed.values_at("text", "key", "mac") if signed.is_a?(Hash)
      raise HeadersRefusedError, "they are not signed" unless [text, id, mac].all?(String)

      key = @keys[id] or raise HeadersRefusedError, "they are signed with key #{id.inspect[0, 40]}, which config.headers_keys doesn't have"
      known = mac(key, text, namespace, name)
      return text if mac.bytesize == known.bytesize && OpenSSL.fixed_length_secure_compare(known, mac)

      raise HeadersRefusedError, "their signature does not fit them and #{namespace}/#{name}"
    end

    def inspect = "#<#{self.class} #{@keys.keys.join(', ')}>"

    private

    # No part can hold a NUL, which Postgres refuses: two tasks never have the same input.
    def mac(key, text, namespace, name)
      OpenSSL::HMAC.hexdigest("SHA256", key, ["tasker current_attributes 1", namespace, name, text].join("\0"))
    end
  end
end
