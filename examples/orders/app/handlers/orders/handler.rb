# frozen_string_literal: true

module Orders
  # What the steps of fulfil_order share: each works on one order.
  class Handler < TaskerCore::BaseStepHandler
    private

    # The task was inserted together with the order: if the order isn't there
    # somebody has deleted it since, and no further attempt will find it.
    def order_of(task)
      Order.find(task["order_id"])
    rescue ActiveRecord::RecordNotFound => e
      raise TaskerCore::PermanentError.new(e.message, error_code: "order_not_found")
    end
  end
end
