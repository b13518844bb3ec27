# frozen_string_literal: true

require "psych"

module TaskerCore
  module Testing
    # Reads YAML as the engine does, YAML 1.2: yes and on are text. Remembers
    # where each value is written.
    class YamlTree
      SCALARS = {
        /\A(~|null|Null|NULL|)\z/ => ->(_) {},
        /\A(true|True|TRUE)\z/ => ->(_) { true },
        /\A(false|False|FALSE)\z/ => ->(_) { false },
        /\A[-+]?(0|[1-9]\d*)\z/ => ->(text) { Integer(text, 10) },
        /\A[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?\z/ => :to_f.to_proc
      }.freeze
      private_constant :SCALARS

      # @return [Object] Hash, Array, String, Integer, Float, true, false or nil
      attr_reader :value

      # @param text [String]
      # @param file [String] its name, for messages
      # @param variables [Hash{String => String}] what ${NAME} stands for
      # @raise [TemplateError]
      def initialize(text, file:, variables: {})
        @file = file
        @variables = variables.transform_keys(&:to_s)
        @places = {}
        @anchors = {}
        stream = Psych.parse_stream(text, filename: file)
        raise TemplateError, "#{file}: a file holds one template, this one has #{stream.children.size}" unless stream.children.size == 1

        @value = read(stream.children.first.root, [])
      rescue Psych::SyntaxError => e
        raise TemplateError, "#{file}:#{e.line}:#{e.column}: malformed YAML: #{[e.problem, e.context].compact.join(' ')}"
      end

      # @param path [Array<String, Integer>]
      # @return [String] file:line:column of the value, or of the nearest around it
      def place(path)
        path = path[0...-1] until path.empty? || @places.key?(path)
        [@file, *@places[path]].join(":")
      end

      private

      def read(node, path)
        @places[path] ||= [node.start_line + 1, node.start_column + 1]
        refuse(node, "the tag #{node.tag} is not allowed; a template holds plain values") if node.respond_to?(:tag) && node.tag
        @anchors[node.anchor] = node if node.respond_to?(:anchor) && node.anchor && !node.is_a?(Psych::Nodes::Alias)
        case node
        when Psych::Nodes::Mapping then mapping(node, path)
        when Psych::Nodes::Sequence then node.children.each_with_index.map { |child, index| read(child, [*path, index]) }
        when Psych::Nodes::Alias then aliased(node, path)
        else scalar(node)
        end
      end

      def mapping(node, path)
        merged = {}
        own = node.children.each_slice(2).with_object({}) do |(key, child), pairs|
          refuse(key, "a key must be text") unless key.is_a?(Psych::Nodes::Scalar)
          if key.value == "<<" && !key.quoted
            [read(child, path)].flatten(1).each { |more| merged = more.merge(merged) }
          else
            refuse(key, "#{key.value.inspect} is given twice") if pairs.key?(key.value)
            @places[[*path, key.value]] = [key.start_line + 1, key.start_column + 1]
            pairs[key.value] = read(child, [*path, key.value])
          end
        end
        own.merge(merged) { |_, first, _| first }
      end

      def aliased(node, path)
        refuse(node, "an alias that contains itself") if path.length > JsonTree::DEPTH_LIMIT
        read(@anchors.fetch(node.anchor) { refuse(node, "there is no anchor &#{node.anchor}") }, path)
      end

      def scalar(node)
        _, convert = SCALARS.find { |form, _| form.match?(node.value) } unless node.quoted
        convert ? convert.call(node.value) : interpolate(node)
      end

      def interpolate(node)
        node.value.gsub(/\$?\$\{([^}]*)\}/) do |found|
          next found[1..] if found.start_with?("$$")

          name = Regexp.last_match(1)
          @variables.fetch(name) { refuse(node, "${#{name}} has no value here: give it with variables: { #{name.inspect} => … }, or write $${") }
        end
      end

      def refuse(node, problem)
        raise TemplateError, "#{@file}:#{node.start_line + 1}:#{node.start_column + 1}: #{problem}"
      end
    end
  end
end
