# frozen_string_literal: true

module Orders
  # Takes the order's items out of what may be sold.
  class ReserveInventory < Handler
    def process(task, _sequence, step)
      order = order_of(task)
      # All or nothing. In the order of sku, so that two orders for the same
      # things can't wait for each other.
      Reservation.transaction do
        order.items.order(:sku).each { |item| reserve(item, step) }
      end
      { reserved: order.reservations.sum(:quantity) }
    end

    private

    # The stock is touched only by the attempt that gets the reservation in.
    def reserve(item, step)
      mine = Reservation.insert(
        { order_id: item.order_id, sku: item.sku, quantity: item.quantity, idempotency_key: step.idempotency_key },
        unique_by: %i[idempotency_key sku]
      )
      return if mine.empty? || InventoryItem.reserve(item.sku, item.quantity)

      raise TaskerCore::PermanentError.new("#{item.sku} is sold out", error_code: "sold_out")
    end
  end
end
