# frozen_string_literal: true

module TaskerCore
  # Text that Postgres takes in any case: UTF-8, without NUL, not too long.
  module CleanText
    module_function

    # @param text [#to_s]
    # @param limit [Integer] characters
    # @return [String]
    def call(text, limit: 10_000)
      text = text.to_s
      text = text.encoding == Encoding::BINARY ? text.dup.force_encoding(Encoding::UTF_8) : utf8(text)
      text = text.scrub("\u{FFFD}").delete("\0")
      text.length > limit ? "#{text[0, limit - 1]}…" : text
    end

    def utf8(text)
      text.encode(Encoding::UTF_8, invalid: :replace, undef: :replace)
    rescue EncodingError
      text.dup.force_encoding(Encoding::UTF_8)
    end
  end
end
