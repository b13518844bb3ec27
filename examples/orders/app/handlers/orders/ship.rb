# frozen_string_literal: true

module Orders
  # Joins the two branches: the charge, and the quote of a Go step.
  class Ship < Handler
    def process(task, sequence, step)
      order = order_of(task)
      quote = sequence.results_of("quote_shipping")
      shipment = Shipment.transaction do
        # A second attempt that comes late must not set the order back.
        Order.where(id: order.id).where.not(state: "fulfilled").update_all(state: "shipped")
        Shipment.create_or_find_by!(idempotency_key: step.idempotency_key) do |s|
          s.order = order
          s.attributes = { carrier: quote["carrier"], price_cents: quote["price_cents"], tracking_number: "PP#{step.step_id.to_s.rjust(9, '0')}" }
        end
      end
      { shipment_id: shipment.id, tracking_number: shipment.tracking_number }
    end
  end
end
