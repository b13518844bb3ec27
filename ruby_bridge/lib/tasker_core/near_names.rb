# frozen_string_literal: true

module TaskerCore
  # For messages: which name was probably meant.
  module NearNames
    module_function

    # @param name [#to_s]
    # @param known [Array<#to_s>]
    # @return [Array<String>] the nearest first; none where Ruby runs without DidYouMean
    def near(name, known)
      defined?(DidYouMean::SpellChecker) ? DidYouMean::SpellChecker.new(dictionary: known).correct(name.to_s) : []
    end

    # @param name [#to_s]
    # @param known [Array<#to_s>]
    # @return [String] such as "; did you mean fulfil_order?", or "; there are …", or ""
    def hint(name, known)
      known = known.map(&:to_s).uniq.sort
      meant = near(name, known)
      return "; did you mean #{meant.join(' or ')}?" if meant.any?
      return "" if known.empty?

      "; there are #{known.first(10).join(', ')}#{" and #{known.size - 10} more" if known.size > 10}"
    end
  end
end
