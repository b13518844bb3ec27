# frozen_string_literal: true

require "connection_pool"

module TaskerCore
  # A small pool of connections of our own: the app's are in its transactions,
  # and a report must not be rolled back with them.
  class Database
    # From 2.4 on a pool closes its connections in the child of a fork: it would say goodbye to
    # the server in the parent's name. AfterFork discards them.
    KEPT = Gem::Version.new(ConnectionPool::VERSION) >= Gem::Version.new("2.4") ? { auto_reload_after_fork: false }.freeze : {}.freeze
    private_constant :KEPT

    # @param size [Integer]
    # @param parameters [#call] gives what PG.connect takes
    def initialize(size: TaskerCore.config.pool_size, parameters: DatabaseParameters.method(:current))
      @parameters = parameters
      @mutex = Mutex.new
      @connections = []
      @pool = ConnectionPool.new(size:, timeout: 5, **KEPT) { add_connection }
    end

    # @return [PG::Result]
    # @raise [DatabaseError]
    def exec(sql, values = [])
      # Not #with: it would let Sidekiq::Shutdown in, between a result and its
      # report, that AttemptRun holds off.
      connection = @pool.checkout
      begin
        connection.exec(sql, values)
      ensure
        @pool.checkin
      end
    rescue ConnectionPool::TimeoutError
      raise DatabaseError, "all #{@pool.size} connections are busy: raise TaskerCore.config.pool_size"
    end

    def close = @pool.shutdown(&:close)

    # In the child of a fork; the pool can't be used afterwards.
    def discard = @connections.each(&:discard)

    private

    def add_connection
      Connection.new(@parameters).tap { |connection| @mutex.synchronize { @connections << connection } }
    end
  end
end
