# frozen_string_literal: true

module TaskerCore
  # An immutable value with named attributes: equal when they are, readable by
  # method, by [] and in pattern matching. (Ruby has Data only from 3.2 on.)
  class Value
    # @param names [Array<Symbol>]
    # @return [void]
    def self.attributes(*names)
      @attributes = names.freeze
      attr_reader(*names)
    end

    # @return [Array<Symbol>]
    def self.attribute_names = @attributes || (superclass.respond_to?(:attribute_names) ? superclass.attribute_names : [])

    # @param attributes [Hash{Symbol => Object}] frozen here, all the way down; those left out are nil
    # @raise [ArgumentError] one of them is unknown
    def initialize(**attributes)
      unknown = attributes.keys - self.class.attribute_names
      raise ArgumentError, "#{self.class} has no #{unknown.join(', ')}; it has #{self.class.attribute_names.join(', ')}" if unknown.any?

      self.class.attribute_names.each { |name| instance_variable_set(:"@#{name}", DeepFreeze.call(attributes[name])) }
      freeze
    end

    # @param name [String, Symbol]
    # @return [Object, nil] an attribute
    # @raise [KeyError] there is none of this name
    def [](name)
      known = self.class.attribute_names.find { |attribute| attribute.name == name.to_s }
      raise KeyError.new("#{self.class} has no #{name}", receiver: self, key: name) unless known

      public_send(known)
    end

    # @return [Hash{Symbol => Object}]
    def to_h = self.class.attribute_names.to_h { |name| [name, public_send(name)] }

    # @return [Value] the like with other attributes
    def with(**changes) = self.class.new(**to_h, **changes)

    # For pattern matching.
    #
    # @param names [Array<Symbol>, nil] nil: all
    # @return [Hash{Symbol => Object}]
    def deconstruct_keys(names) = names ? to_h.slice(*names) : to_h

    # @return [Boolean] whether it is of the same class, with equal attributes
    def ==(other) = other.instance_of?(self.class) && other.to_h == to_h
    alias eql? ==

    # @return [Integer] the same for equal values
    def hash = [self.class, to_h].hash

    def inspect = "#<#{self.class} #{to_h.map { |name, value| "#{name}=#{value.inspect}" }.join(' ')}>"
  end
end
