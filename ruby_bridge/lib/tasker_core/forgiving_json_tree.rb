# frozen_string_literal: true

module TaskerCore
  # A JsonTree for what is kept for people only, such as the context of an
  # error: what can't be JSON is shown as Ruby shows it. Nothing is refused, as
  # the error itself matters more.
  class ForgivingJsonTree < JsonTree
    private

    def refuse(value, _problem)
      CleanText.call(value.is_a?(String) ? value : value.inspect, limit: 1_000)
    rescue StandardError
      "#<#{value.class}>"
    end
  end
end
