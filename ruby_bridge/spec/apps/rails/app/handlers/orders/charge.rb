# frozen_string_literal: true

module Orders
  class Charge < TaskerCore::BaseStepHandler
    def process(task, _sequence, _step)
      { database: ActiveRecord::Base.connection.current_database, order_id: task["order_id"],
        pool_size: TaskerCore.config.pool_size, at: Time.zone.at(0) }
    end
  end
end
