# frozen_string_literal: true

module Orders
  # The step with the most to go wrong: somebody else's service, and money.
  class ChargeCard < Handler
    def process(task, sequence, step)
      order = order_of(task)
      if sequence.results_of("fraud_check")["verdict"] != "pass"
        raise TaskerCore::PermanentError.new("a person has to look at order #{order.id}", error_code: "suspected_fraud")
      end

      payment = pay(order, step)
      charge = Charge.create_or_find_by!(idempotency_key: step.idempotency_key) do |c|
        c.order = order
        c.attributes = { reference: payment.reference, amount_cents: payment.amount_cents, currency: step.config["currency"] }
      end
      { charge_id: charge.id, reference: charge.reference, amount_cents: charge.amount_cents }
    end

    private

    # PaymentGateway::Timeout goes through as it is: any error is tried again
    # after the template's backoff. Whether the money was taken is unknown then;
    # the idempotency key makes the second request safe.
    def pay(order, step)
      PaymentGateway.charge(card_token: order.card_token, amount_cents: order.total_cents, idempotency_key: step.idempotency_key)
    rescue PaymentGateway::Busy => e
      raise TaskerCore::RetryableError.new(e.message, retry_after: e.retry_after)
    rescue PaymentGateway::Declined => e
      order.update!(state: "payment_failed") # what is reserved stays so: a person may retry the step
      raise TaskerCore::PermanentError.new(e.message, error_code: e.code)
    end
  end
end
