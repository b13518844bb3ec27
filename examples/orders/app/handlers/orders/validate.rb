# frozen_string_literal: true

module Orders
  # Finds orders that no later step could do anything with.
  class Validate < Handler
    def process(task, _sequence, _step)
      order = order_of(task)
      items = order.items.to_a
      sum = items.sum { |item| item.quantity * item.price_cents }
      unknown = items.map(&:sku) - InventoryItem.where(sku: items.map(&:sku)).pluck(:sku)

      refuse("empty_order", "order #{order.id} has no items") if items.empty?
      refuse("unknown_sku", "the shop doesn't sell #{unknown.join(', ')}") if unknown.any?
      refuse("wrong_total", "the items cost #{sum}, the order says #{order.total_cents}") if sum != order.total_cents

      { items: items.size, total_cents: sum }
    end

    private

    def refuse(code, message)
      raise TaskerCore::PermanentError.new(message, error_code: code)
    end
  end
end
