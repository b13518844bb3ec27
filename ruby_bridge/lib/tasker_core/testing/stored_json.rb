# frozen_string_literal: true

require "bigdecimal"
require "json"

module TaskerCore
  module Testing
    # What comes back of a value that was stored as jsonb: what a handler reads
    # is never the object that another one returned.
    module StoredJson
      module_function

      # @param value [Object] what Ruby code gives
      # @param what [String] for the message
      # @return [Object] frozen JSON values; keys in the order of jsonb
      # @raise [InputError] naming the place
      def build(value, what)
        read(JSON.generate(JsonTree.build(value), max_nesting: 0))
      rescue JsonTree::Refused => e
        raise InputError, "#{what} is not JSON: #{e.message}"
      end

      # @param json [String]
      # @return [Object]
      def read(json) = DeepFreeze.call(stored(JSON.parse(json, max_nesting: false)))

      def stored(value)
        case value
        when Hash then value.sort_by { |key, _| [key.bytesize, key.b] }.to_h.transform_values { |member| stored(member) }
        when Array then value.map { |member| stored(member) }
        when Float then number(value)
        else value
        end
      end

      # jsonb keeps numbers as decimals: of one that is written with a positive
      # exponent it writes the digits.
      def number(float)
        return 0.0 if float.zero? # -0.0

        text = JSON.generate(float)
        text.match?(/e\+?\d/i) ? BigDecimal(text).to_i : float
      end
    end
  end
end
