# frozen_string_literal: true

module TaskerCore
  # Copies a tree of JSON values: what may be changed, or frozen, for itself.
  module DeepCopy
    module_function

    def call(value)
      case value
      when Hash then value.transform_values { |member| call(member) } # keys: Hash froze them
      when Array then value.map { |member| call(member) }
      when String then value.dup
      else value
      end
    end
  end
end
