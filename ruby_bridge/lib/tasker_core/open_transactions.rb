# frozen_string_literal: true

module TaskerCore
  # Sees to it that a handler leaves no transaction open on the connections of
  # ActiveRecord that its thread has. What the next job of the thread writes
  # would be part of it, and would never commit. Where one was left, it is
  # rolled back, and the attempt fails: what it wrote there is gone.
  class OpenTransactions
    # @return [OpenTransactions, nil] nil: ActiveRecord isn't loaded
    def self.for(_config) = defined?(ActiveRecord::Base) ? new : nil

    def call(_task, _step)
      pools = ActiveRecord::Base.connection_handler.connection_pool_list(ActiveRecord::Base.current_role)
      before = pools.map { |pool| state(connection_of(pool)) }
      returned = false
      begin
        yield
        returned = true
      ensure
        left = pools.zip(before).select { |pool, state| end_leftovers(connection_of(pool), state) }
        raise_or_log(left.map(&:first), returned) if left.any?
      end
    end

    private

    # The one that this thread has; asking doesn't take one from the pool.
    def connection_of(pool) = pool.active_connection? || nil

    def state(connection) = connection && [connection, connection.open_transactions, begun?(connection)]

    # Whether Postgres is in a transaction, also one that ActiveRecord doesn't
    # know of: somebody executed BEGIN. Not by raw_connection, which from
    # Rails 7.1 on takes a connection for changed.
    def begun?(connection)
      driver = %i[@raw_connection @connection].filter_map { |name| connection.instance_variable_get(name) }.first
      return false unless driver.respond_to?(:transaction_status)

      [PG::PQTRANS_INTRANS, PG::PQTRANS_INERROR].include?(driver.transaction_status)
    rescue PG::Error
      false # it is closed
    end

    # @return [Boolean] whether there were any
    def end_leftovers(connection, before)
      return false if connection.nil?

      _, transactions, begun = before if before && before.first.equal?(connection)
      transactions ||= 0
      left = connection.open_transactions > transactions
      connection.rollback_transaction while connection.open_transactions > transactions
      unknown = transactions.zero? && !begun && begun?(connection)
      connection.reset! if unknown
      left || unknown
    rescue ActiveRecord::ActiveRecordError, PG::Error
      raise if transactions.positive?

      connection.throw_away! # it is broken
      true
    end

    def raise_or_log(pools, returned)
      text = "the handler left a transaction open on #{pools.map { |pool| pool.db_config.name }.join(', ')}; it was rolled back, " \
             "with all that was written in it: let ActiveRecord::Base.transaction { … } end it"
      raise Error, text if returned

      # It fails in any case.
      TaskerCore.logger.warn { "tasker: #{text}" }
    end
  end
end
