# frozen_string_literal: true

require "strscan"

module TaskerCore
  # Masks what is a secret by its looks alone: private keys, passwords in URLs,
  # numbers of payment cards. Part of SecretFilter.
  # @private
  module SecretLooks
    PRIVATE_KEY = /(-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,10}-----).*?(-----END [A-Z0-9 ]{0,60}-----|\z)/m
    WEB_SCHEME = /(?:\A|[^a-z])(?:https?|wss?)\z/i
    MANY_DIGITS = /[0-9](?:[ -]?[0-9]){12}/
    LETTER = /[\p{L}_]/
    CARD_SHAPES = [[4, 4, 4, 4, 3], [4, 4, 4, 4, 2], [4, 4, 4, 4, 1], [4, 4, 4, 4], [4, 6, 5], [4, 6, 4]].freeze
    CARD = /\A(?:4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})|5[1-5][0-9]{14}|5[0678][0-9]{11,17}|6[0-9]{12,18}|
      3[47][0-9]{13}|3[05689][0-9]{12,17}|2[2-7][0-9]{14})\z/x

    module_function

    def keys(text) = text.include?("PRIVATE KEY") ? text.gsub(PRIVATE_KEY, "\\1#{SecretFilter::MASK}\\2") : text

    # Passwords that are not percent-encoded may hold each of /, ?, # and @.
    def urls(text)
      return text unless text.include?("://")

      before = nil
      text.split("://", -1).map do |piece|
        masked = before ? password(piece, WEB_SCHEME.match?(before[-6..] || before)) : piece
        before = piece
        masked
      end.join("://")
    end

    # @param rest [String] what stands behind "://"
    def password(rest, web)
      token = rest[/\A[^ \t\r\n\f\v"<>]*/]
      authority = token[%r{\A[^/?#]*}]
      at = at_sign(token, authority, web)
      colon = authority.index(":")
      return rest if colon.nil? || at.nil? || at <= colon + 1
      return rest if rest[(colon + 1)...at] == "PASSWORD" # an example

      # A port and a path.
      return rest if at >= authority.length && (authority.start_with?("[") || (web && authority[(colon + 1)..].match?(/\A[0-9]*\z/)))

      "#{rest[0..colon]}#{SecretFilter::MASK}#{rest[at..]}"
    end

    # Where the password ends.
    def at_sign(token, authority, web)
      return authority.rindex("@") if web && authority.include?("@")

      first = token.index("@") or return
      query = web ? nil : token.index("?", first)
      (query ? token[0...query] : token).rindex("@")
    end

    # 13 to 19 digits, as one or in the groups in which cards show them.
    def cards(text)
      return text unless text.match?(MANY_DIGITS)

      scanner = StringScanner.new(text)
      out = +""
      before = ""
      until scanner.eos?
        if (other = scanner.scan(/[^0-9]+/))
          before = other
        else
          run = scanner.scan(/[0-9](?:[ -]?[0-9])*/)
          out << run_of_digits(run, part_of_more?(before, out), scanner.check(/[\p{L}_]|\.[0-9]/))
          next
        end
        out << other
      end
      out
    end

    # Whether digits behind these characters belong to a longer word or a fraction.
    def part_of_more?(before, out) = LETTER.match?(before[-1].to_s) || (before == "." && out.length > 1)

    def run_of_digits(run, part_before, part_behind)
      return run if run.length < 13

      groups = run.split(/[ -]/)
      separators = run.scan(/[ -]/)
      out = +""
      index = 0
      while index < groups.length
        count = card_groups(groups, index)
        count = 0 if (index.zero? && part_before) || (index + count == groups.length && part_behind)
        out << (count.positive? ? SecretFilter::MASK : groups[index])
        index += [count, 1].max
        out << separators[index - 1] if index < groups.length
      end
      out
    end

    # How many groups from here on are a card's number.
    def card_groups(groups, index)
      return 1 if card?(groups[index])
      return 0 unless groups[index].length == 4

      shape = CARD_SHAPES.find do |lengths|
        part = groups[index, lengths.length]
        part.map(&:length) == lengths && card?(part.join)
      end
      shape ? shape.length : 0
    end

    # Whether the digits begin as a card's do and pass the check of Luhn.
    def card?(number)
      return false unless CARD.match?(number)

      sum = number.reverse.each_char.with_index.sum do |digit, index|
        index.odd? ? (digit.to_i * 2).digits.sum : digit.to_i
      end
      (sum % 10).zero?
    end
  end
end
