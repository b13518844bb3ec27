# frozen_string_literal: true

module Orders
  # Writes to the customer. (A mail server takes an idempotency key too rarely:
  # keep what was sent, as here.)
  class Notify < Handler
    def process(task, sequence, step)
      order = order_of(task)
      tracking_number = sequence.results_of("ship")["tracking_number"]
      notification = Notification.transaction do
        order.update!(state: "fulfilled")
        Notification.create_or_find_by!(idempotency_key: step.idempotency_key) do |n|
          n.order = order
          n.subject = "#{order.customer}, your order #{order.id} is on its way: #{tracking_number}"
        end
      end
      { notification_id: notification.id }
    end
  end
end
