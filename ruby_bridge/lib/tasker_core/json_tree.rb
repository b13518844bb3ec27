# frozen_string_literal: true

module TaskerCore
  # Turns what Ruby code returns into plain JSON values: what another language
  # reads out is what was put in. Symbols, Time, Date and BigDecimal become
  # strings; whatever has no faithful form is refused, with its place.
  class JsonTree
    # A value that JSON, or jsonb, can't hold.
    class Refused < Error
      # @return [String] such as $.items[3].price
      attr_reader :path

      def initialize(path, problem)
        super("#{path} #{problem}")
        @path = path
      end
    end

    # Levels of nesting. Ruby's own parser stops at 100.
    DEPTH_LIMIT = 96
    PLAIN_KEY = /\A[A-Za-z_]\w*\z/

    # @param keys [Array<String, Integer>]
    # @return [String] such as $.items[3]["unit price"]
    def self.path(keys)
      keys.reduce(+"$") do |path, key|
        path << case key
                when Integer then "[#{key}]"
                when PLAIN_KEY then ".#{key}"
                else "[#{CleanText.call(key, limit: 100).inspect}]"
                end
      end
    end

    # @param value [Object]
    # @return [Object] Hash with String keys, Array, String (UTF-8), Integer, Float, true, false or nil
    # @raise [Refused]
    def self.build(value) = new.build(value)

    def initialize
      @keys = []
    end

    def build(value)
      case value
      when nil, true, false, Integer then value
      when String then text(value)
      when Symbol then text(value.name)
      when Float then float(value)
      when Hash then nested(value) { object(value) }
      when Array then nested(value) { array(value) }
      else other(value)
      end
    end

    private

    def text(value)
      value = utf8(value)
      problem = problem_of(value)
      problem ? refuse(value, problem) : plain(value)
    end

    def problem_of(text)
      return "is not valid UTF-8; for bytes, use Base64" unless text.valid_encoding?

      "contains a NUL character, which Postgres can't store" if text.include?("\0")
    end

    def plain(text) = text.instance_of?(String) ? text : String.new(text)

    # Bytes fresh from a socket are tagged as binary, whatever they are.
    def utf8(value)
      case value.encoding
      when Encoding::UTF_8, Encoding::US_ASCII then value
      when Encoding::BINARY then value.dup.force_encoding(Encoding::UTF_8)
      else value.encode(Encoding::UTF_8)
      end
    rescue EncodingError
      value.dup.force_encoding(Encoding::UTF_8)
    end

    def float(value)
      value.finite? ? value : refuse(value, "is #{value}, which JSON doesn't have")
    end

    def object(value)
      value.each_with_object({}) do |(key, member), object|
        name = key(key)
        at(name) do
          refuse(member, "is there twice, as String and as Symbol") if object.key?(name)
          object[name] = build(member)
        end
      end
    end

    def key(key)
      unless key.is_a?(String) || key.is_a?(Symbol)
        return refuse(key, "has the key #{CleanText.call(key.inspect, limit: 100)} of class #{key.class}; JSON's keys are strings")
      end

      key = utf8(key.to_s)
      problem = problem_of(key)
      problem ? refuse(key, "has a key that #{problem}") : plain(key)
    end

    def array(value)
      value.each_with_index.map { |member, index| at(index) { build(member) } }
    end

    def other(value)
      if value.is_a?(Time) || (defined?(DateTime) && value.is_a?(DateTime))
        value.to_time.getutc.strftime("%Y-%m-%dT%H:%M:%S.%6NZ")
      elsif defined?(Date) && value.is_a?(Date)
        value.strftime("%Y-%m-%d")
      elsif defined?(BigDecimal) && value.is_a?(BigDecimal)
        value.finite? ? value.to_s("F") : refuse(value, "is #{value}, which JSON doesn't have")
      else
        refuse(value, "is a #{value.class}: return Hash, Array, String, Integer, Float, true, false or nil")
      end
    end

    def nested(value)
      return refuse(value, "is nested deeper than #{DEPTH_LIMIT} levels") if @keys.length >= DEPTH_LIMIT

      yield
    end

    def at(key)
      @keys.push(key)
      yield
    ensure
      @keys.pop
    end

    # @return [Object] what to put in the place of the value, if it doesn't raise
    def refuse(_value, problem)
      raise Refused.new(self.class.path(@keys), problem)
    end
  end
end
