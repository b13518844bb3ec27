# frozen_string_literal: true

require "strscan"

module TaskerCore
  # Masks the words of a text that are secrets, and the values behind a secret's
  # name. It looks at one word after the other, each once. Part of SecretFilter.
  # @private
  class SecretWords
    MASK = SecretFilter::MASK
    MASK_START = "[FILTERED"
    NAME_CHARACTERS = 100
    # Names of parameters that hold a secret in the query of a URL.
    QUERY_NAMES = %w[key sig signature x_amz_signature x_goog_signature hmac pwd pass auth jwt].freeze
    # They are no secrets, whatever name stands before them.
    INNOCENT_VALUES = %w[a an and are as at can't cannot contains does doesn't empty expected expired false for from has in
                         incorrect invalid is isn't missing must nil no none not null of on or required should the to true
                         undefined unexpected unknown was with wrong].freeze
    LONGEST_INNOCENT = 20

    WORD = /[\p{L}\p{N}_-]+/
    OTHER = /[^\p{L}\p{N}_-]+/
    KNOWN_KEY = /\A(?:(?:AKIA|ASIA)[A-Z0-9]{16}|[sr]k_(?:live|test)_[A-Za-z0-9]{10,}|gh[pousr]_[A-Za-z0-9]{20,}|
      github_pat_[A-Za-z0-9_]{20,}|xox[abeoprs]-[A-Za-z0-9-]{10,})\z/x
    TOKEN_REST = /\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*/
    CREDENTIAL = %r{([ \t]+)([A-Za-z0-9._~+/=-]+)}
    SEPARATOR = /(?:\\*["'])?\]?[ \t]*(?:=>|:=|=|:)[ \t]*/
    SCHEMED = /((?:basic|bearer|token|apikey|key|negotiate)[ \t]+)([^\s"'<>;]+)/i
    # Without backtracking: a value may be long.
    BARE = /(?>[^ \t\r\n\f\v"'&;<>,]+|,(?![A-Za-z_][A-Za-z0-9_-]{0,40}[=:]))++/

    # @param name [String]
    # @return [String] in small letters with underscores
    def self.normal(name) = name.downcase.tr("-", "_")

    # @param text [String] valid UTF-8
    # @yieldparam name [String]
    # @yieldreturn [Boolean] whether a value with this name is a secret
    def initialize(text, &secret)
      @scanner = StringScanner.new(text)
      @secret = secret
      @out = +""
    end

    # @return [String]
    def masked
      query = false
      until @scanner.eos?
        if (other = @scanner.scan(OTHER))
          @out << other
          query = other.end_with?("?", "&")
        else
          word(@scanner.scan(WORD), query)
          query = false
        end
      end
      @out
    end

    private

    def word(word, query)
      return @out << MASK if token?(word) || KNOWN_KEY.match?(word)

      @out << word
      return if credential(word)

      secret = @secret.call(word)
      return if secret && word.start_with?("--") && option
      return unless secret || (query && @scanner.check(/=/) && QUERY_NAMES.include?(self.class.normal(word)))

      assignment(word, query)
    end

    # A JSON Web Token.
    def token?(word)
      return false unless word.start_with?("eyJ") && word.bytesize > 8 && (rest = @scanner.scan(TOKEN_REST))

      @scanner.pos -= 1 if rest.end_with?(".")
      true
    end

    # What stands behind "Bearer" or "Basic", if it is more than a word.
    def credential(word)
      scheme = word.downcase
      return unless %w[bearer basic].include?(scheme) && @scanner.check(CREDENTIAL) && credential?(scheme, @scanner[2])

      @out << @scanner[1] << MASK
      @scanner.skip(CREDENTIAL)
    end

    def credential?(scheme, text)
      return text.unpack1("m0").include?(":".b) if scheme == "basic"

      text.length >= 8 && (text.match?(/[0-9=]/) || text[1..].match?(/[A-Z]/))
    rescue ArgumentError
      false
    end

    def option
      gap = @scanner.check(/[ \t]+/) or return
      start = @scanner.pos
      @scanner.skip(/[ \t]+/)
      return take(gap, value(false)) unless @scanner.check(/-/)

      @scanner.pos = start
      nil
    end

    # Writes what is shown instead of what was taken. Without anything to hide,
    # what was read comes again.
    def take(before, shown)
      @scanner.pos -= before.bytesize if shown.nil?
      shown && (@out << before << shown)
    end

    def assignment(name, query)
      separator = @scanner.scan(SEPARATOR) or return
      colon = separator.rstrip.end_with?(":")
      header = self.class.normal(name).end_with?("authorization", "cookie")
      take(separator, shown(colon, header, query))
    end

    def shown(colon, header, query)
      return if (colon && @scanner.check(/:/)) || @scanner.check(/\[?\[FILTERED/) # Token::Store
      return list if @scanner.check(/\[/) && (header || @scanner.check(/\[[ \t]*\\*["']/))

      colon && header && !@scanner.check(/\\*["']/) ? header_value : value(query)
    end

    # Up to the bracket, or in a text that was cut to the end of the line.
    def list
      @scanner.skip(/[^\]\r\n]*/)
      "[#{MASK}"
    end

    # To the end of the line; with a well-known scheme, the credentials.
    def header_value
      if @scanner.check(SCHEMED)
        scheme = @scanner[1]
        secret = trimmed(@scanner[2])
        return if secret.empty? || secret.start_with?(MASK_START)

        @scanner.pos += scheme.bytesize + secret.bytesize
        return scheme + MASK
      end
      first = @scanner.check(BARE)
      return if first.nil? || innocent?(first)

      @scanner.skip(/[^\r\n]+/)
      MASK
    end

    # In quotes, or up to what ends it.
    def value(query)
      quote = @scanner.check(/\\*["']/)
      return quoted(quote) if quote
      return if @scanner.check(/\[FILTERED/) || (!query && @scanner.check(/[={]/))

      text = query ? @scanner.check(/[^&#\s"'<>;]+/) : trimmed(@scanner.check(BARE).to_s)
      return if text.nil? || text.empty? || innocent?(text) || (!query && text.length < 4 && !text.match?(WORD))

      @scanner.pos += text.bytesize
      MASK
    end

    def quoted(quote)
      start = @scanner.pos
      @scanner.pos += quote.bytesize
      text = inner(quote)
      return "#{quote}#{MASK}" unless text.empty? || text == MASK

      @scanner.pos = start
      nil
    end

    # Up to the closing quote; without one to the end of the line.
    def inner(quote)
      start = @scanner.pos
      if quote.length > 1
        found = @scanner.scan_until(/#{Regexp.escape(quote)}/)
        return before_closing(found, quote) if found
      else
        text = @scanner.scan(quote == '"' ? /(?>[^"\\]+|\\.)*/m : /(?>[^'\\]+|\\.)*/m)
        return text if @scanner.check(/["']/)
      end
      @scanner.pos = start
      @scanner.scan(/[^\r\n]*/)
    end

    def before_closing(found, quote)
      @scanner.pos -= quote.bytesize
      found.delete_suffix(quote)
    end

    def trimmed(text)
      last = text.rindex(/[^)\]},.:]/)
      last ? text[0..last] : ""
    end

    def innocent?(value)
      value.start_with?(MASK_START) || (value.length < LONGEST_INNOCENT && INNOCENT_VALUES.include?(trimmed(value).downcase))
    end
  end
end
