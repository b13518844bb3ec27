# frozen_string_literal: true

module TaskerCore
  # The app's own connection, and so its transaction: what happens here
  # commits, or doesn't, with the app's writes. Errors are ActiveRecord's.
  class ActiveRecordDatabase
    # Gives back the connections of ActiveRecord that this thread has, but for
    # those in a transaction. One that broke is found out when it is taken from
    # its pool, before Rails 7.1 only then; and Rails gives them back after a job,
    # where there is Rails, and the job isn't one of many attempts.
    def self.release_connections
      return unless defined?(ActiveRecord::Base)

      ActiveRecord::Base.connection_handler.connection_pool_list(ActiveRecord::Base.current_role).each do |pool|
        pool.release_connection if (pool.active_connection? || next).open_transactions.zero?
      end
    end

    # @param connection [ActiveRecord::ConnectionAdapters::AbstractAdapter, nil] nil: that of ActiveRecord::Base
    # @raise [ConfigurationError] without ActiveRecord
    def initialize(connection = nil)
      raise ConfigurationError, "this needs ActiveRecord, connected to tasker's database" unless defined?(ActiveRecord::Base)

      @connection = connection
    end

    # @return [ActiveRecord::Result]
    def exec(sql, values = [])
      # Not select_all: with the query cache on, a second call would only seem
      # to be made.
      with_connection { |connection| connection.exec_query(sql, "TaskerCore", values, prepare: connection.prepared_statements) }
    end

    # @yield in a transaction, or a savepoint when there is one
    def transaction(&) = ActiveRecord::Base.transaction(requires_new: true, &)

    private

    def with_connection(&)
      return yield(@connection) if @connection

      # From Rails 7.2; the connection that the thread has, if it has one.
      return ActiveRecord::Base.with_connection(&) if ActiveRecord::Base.respond_to?(:with_connection)

      yield ActiveRecord::Base.connection
    end
  end
end
