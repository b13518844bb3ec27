# frozen_string_literal: true

module TaskerCore
  # Freezes a tree of JSON values in place.
  module DeepFreeze
    module_function

    def call(value)
      case value
      when Hash then value.each_value { |member| call(member) } # keys: Hash froze them
      when Array then value.each { |member| call(member) }
      end
      value.freeze
    end
  end
end
