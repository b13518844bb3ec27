# frozen_string_literal: true

module TaskerCore
  # Masks secrets in what leaves the process for people to read: by the names
  # that values have, and by the looks of what is written in a text. It looks at
  # each word of a text once, so that no text makes it slow. The engine's
  # safetext.Mask does the same; contract/secrets.json has examples for both.
  class SecretFilter
    MASK = "[FILTERED]"

    # Parts of names. A dash counts as an underscore, capitals as small letters.
    DEFAULTS = %w[passw passphrase secret token authorization api_key access_key private_key credential cookie cvv cvc].freeze

    # Names that hold one of DEFAULTS and are no secret's name.
    INNOCENT = /secretar|tokeni[sz]|\A_*(?:invalid|missing|expired|unexpected|unknown|unsupported)|
      (?:error|exception|expired|invalid|missing|mismatch)\z|
      (?:max|min|total|prompt|completion|input|output|cached)_?tokens?|tokens?_(?:count|limit|type|used|usage|budget)\z|
      _(?:env|file|path|dir|name|names|url|uri|endpoint|class|policy|length|expires|expires_at|expires_in|ttl|age|required|present|valid)\z/x

    # @param filters [Array<String, Symbol, Regexp, Proc>] as Rails takes them; one with a dot, such as
    #   "card.number", names a path; a Proc is called with name and value, and changes the value in place
    def initialize(filters)
      @procs, patterns = filters.partition { |filter| filter.is_a?(Proc) }
      paths, names = patterns.partition { |filter| source(filter).include?("\\.") }
      defaults, own = names.partition { |filter| filter.is_a?(String) && DEFAULTS.include?(filter) }
      @defaults = defaults.flat_map { |part| [part, part.delete("_")] }.uniq
      @names = union(own)
      @paths = union(paths)
    end

    # @param text [String] valid UTF-8
    # @return [String]
    def text(text)
      text = SecretLooks.keys(text)
      text = SecretLooks.urls(text)
      SecretLooks.cards(SecretWords.new(text) { |name| name?(name) }.masked)
    end

    # @param tree [Object] of JsonTree
    # @return [Object] the like
    def tree(tree, path = [])
      case tree
      when Hash then tree.to_h { |name, value| [name, member(name, value, [*path, name])] }
      when Array then tree.map { |value| tree(value, path) }
      when String then text(tree)
      when Integer then SecretLooks.card?(tree.to_s) ? MASK : tree
      else tree
      end
    end

    private

    def member(name, value, path)
      return MASK if name?(name) || match?(@paths, path.join("."))

      value = tree(value, path)
      return value if @procs.empty? || !value.is_a?(String)

      value = +value
      @procs.each { |filter| filter.arity == 2 ? filter.call(name, value) : filter.call(name, value, {}) }
      value
    end

    # Whether a value with this name is a secret.
    def name?(name)
      name = name[-SecretWords::NAME_CHARACTERS..] || name
      return true if match?(@names, name)

      normal = SecretWords.normal(name)
      @defaults.any? { |part| normal.include?(part) } && !INNOCENT.match?(normal)
    end

    def match?(pattern, name) = !pattern.nil? && (pattern.match?(name) || pattern.match?(name.tr("-", "_")))

    def source(filter) = filter.is_a?(Regexp) ? filter.source : Regexp.escape(filter.to_s)

    def union(filters)
      Regexp.union(filters.map { |filter| filter.is_a?(Regexp) ? filter : /#{source(filter)}/i }) if filters.any?
    end
  end
end
