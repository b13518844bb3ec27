# frozen_string_literal: true

# Answers each event with one of its own, in a transaction of the app's.
class Audit < TaskerCore::EventSubscriber
  subscribe_to "shop.sold", from: :beginning

  def handle_shop_sold(event)
    ActiveRecord::Base.transaction do
      TaskerCore::EventPublisher.publish("shop.audited", { of: event.id, busy: ActiveRecord::Base.connection_pool.stat[:busy] })
    end
  end
end
