# frozen_string_literal: true

module Orders
  # Reads only: it may run as often as it likes.
  class FraudCheck < Handler
    SUSPICIOUS = 80

    def process(task, _sequence, _step)
      order = order_of(task)
      score = [order.total_cents / 1_000, 100].min
      { score:, verdict: score < SUSPICIOUS ? "pass" : "review" }
    end
  end
end
