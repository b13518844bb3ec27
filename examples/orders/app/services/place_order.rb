# frozen_string_literal: true

# Stores an order and starts its workflow, in one transaction: the task runs if
# and only if the order is there.
class PlaceOrder
  # Any client can do this. TaskerCore.enqueue_task is the same with keywords.
  INSERT_TASK = <<~SQL
    INSERT INTO tasker.tasks (namespace, name, version, context, idempotency_key, correlation_id, initiator, carrier, source_system)
    VALUES ('shop', 'fulfil_order', '1.0.0', $1, $2, $3, $4, $5, 'orders')
    RETURNING task_id
  SQL

  Placed = Struct.new(:order, :task_id)

  # @param cart [Hash{String => Integer}] quantity by sku
  # @return [Placed]
  # @raise [ActiveRecord::RecordNotFound] the shop doesn't sell one of them
  def self.call(customer:, card_token:, cart:, correlation_id: SecureRandom.uuid)
    Order.transaction do
      lines = cart.map { |sku, quantity| { sku:, quantity:, price_cents: InventoryItem.find_by!(sku:).price_cents } }
      order = Order.create!(customer:, card_token:, total_cents: lines.sum { |line| line[:quantity] * line[:price_cents] })
      order.items.create!(lines)

      context = { order_id: order.id }.to_json
      carrier = TaskerCore::TaskCarrier.to_json("shop", "fulfil_order")
      task = Order.connection.exec_query(INSERT_TASK, "Insert task", [context, "order-#{order.id}", correlation_id, customer, carrier])
      Placed.new(order, task.first["task_id"])
    end
  end
end
