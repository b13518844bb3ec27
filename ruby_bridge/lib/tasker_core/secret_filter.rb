# frozen_string_literal: true

module TaskerCore
  # Masks secrets in what leaves the process for people to read: by the names
  # that values have, and by the looks of what is written in a text.
  class SecretFilter
    MASK = "[FILTERED]"

    # Parts of names. A dash counts as an underscore, capitals as small letters.
    DEFAULTS = %w[passw secret token authorization api_key apikey access_key private_key credential cookie cvv cvc].freeze

    # postgres://user:password@host
    URL_PASSWORD = %r{(://[^\s/:@]*:)[^\s/@]+(?=@)}
    # As in the header Authorization.
    BEARER = %r{\b(bearer\s+)[\w.~+/=-]{8,}}i

    # @param filters [Array<String, Symbol, Regexp, Proc>] as Rails takes them; one with a dot, such as
    #   "card.number", names a path; a Proc is called with name and value, and changes the value in place
    def initialize(filters)
      @procs, patterns = filters.partition { |filter| filter.is_a?(Proc) }
      paths, names = patterns.partition { |filter| source(filter).include?("\\.") }
      @names = union(names)
      @paths = union(paths)
      @assignment = assignment(names.grep_v(Regexp).map { |name| source(name).gsub("_", "[_-]") })
    end

    # @param text [String] valid UTF-8
    # @return [String]
    def text(text)
      text = text.gsub(URL_PASSWORD, "\\1#{MASK}").gsub(BEARER, "\\1#{MASK}")
      @assignment ? text.gsub(@assignment, "\\1\\2#{MASK}") : text
    end

    # @param tree [Object] of JsonTree
    # @return [Object] the like
    def tree(tree, path = [])
      case tree
      when Hash then tree.to_h { |name, value| [name, member(name, value, [*path, name])] }
      when Array then tree.map { |value| tree(value, path) }
      when String then text(tree)
      else tree
      end
    end

    private

    def member(name, value, path)
      return MASK if match?(@names, name) || match?(@paths, path.join("."))

      value = tree(value, path)
      return value if @procs.empty? || !value.is_a?(String)

      value = +value
      @procs.each { |filter| filter.arity == 2 ? filter.call(name, value) : filter.call(name, value, {}) }
      value
    end

    def match?(pattern, name) = !pattern.nil? && (pattern.match?(name) || pattern.match?(name.tr("-", "_")))

    # password=…, "password": "…" and the like, as connection strings, query
    # strings, JSON and inspected hashes have them.
    def assignment(names)
      /((?:#{names.join('|')})[\w-]{0,40})(["']?\s*(?:=>\s*["']|=(?!>)["']?|:\s*["']))(?!\[FILTERED\])(?:(?<=["'])[^"']+|[^\s"'&;,]+)/i if names.any?
    end

    def source(filter) = filter.is_a?(Regexp) ? filter.source : Regexp.escape(filter.to_s)

    def union(filters)
      Regexp.union(filters.map { |filter| filter.is_a?(Regexp) ? filter : /#{source(filter)}/i }) if filters.any?
    end
  end
end
