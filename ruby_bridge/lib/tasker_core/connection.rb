# frozen_string_literal: true

require "digest/sha2" # now: loaded by the first two threads that need it, it would fail one of them
require "pg"

module TaskerCore
  # One connection to Postgres that opens when it is needed, and again after it
  # broke. Not for two threads at a time.
  #
  # Statements are not repeated here: whether that is safe is for the caller to
  # know, and DatabaseError#unanswered? is what it needs to know.
  class Connection
    # No such schema, function, table.
    MISSING = %w[3F000 42883 42P01].freeze

    # Statements that a connection keeps prepared. The gem's own are a few.
    PREPARED = 32

    # Why a prepared statement is not carried out, and would be if it weren't prepared: since a migration it returns other
    # columns, or a function takes other types; a pooler gives each transaction another session.
    UNPREPARED = [PG::FeatureNotSupported, PG::UndefinedFunction, PG::DatatypeMismatch, PG::InvalidSqlStatementName,
                  PG::DuplicatePstatement].freeze
    private_constant :PREPARED, :UNPREPARED

    # @param parameters [#call] gives what PG.connect takes
    def initialize(parameters)
      @parameters = parameters
    end

    # @param sql [String]
    # @param values [Array<String, Integer, nil>]
    # @return [PG::Result] all values are text
    # @raise [DatabaseError]
    def exec(sql, values = [])
      open_unless_alive
      query(sql, values)
    end

    def close
      @pg&.close unless @pg&.finished?
    rescue PG::Error
      nil # it was gone already
    ensure
      @pg = nil
    end

    # After a fork the socket is the parent's as well: closing the connection
    # here would say goodbye to the server in the parent's name.
    def discard
      @pg&.socket_io&.reopen(File::NULL)
    rescue PG::Error, IOError
      nil
    ensure
      @pg = nil
    end

    private

    def open_unless_alive
      close if @pg && !alive?
      @pg ||= connect(@parameters.call).tap { @prepared = {} }
    rescue PG::Error => e
      raise database_error(e, answered: true)
    end

    # A pooler takes no options: behind one, the role has to have them.
    def connect(parameters)
      PG.connect(**parameters)
    rescue PG::ConnectionBad => e
      raise unless parameters[:options] && e.message.include?("unsupported startup parameter")

      PG.connect(**parameters, options: nil)
    end

    # A server that has gone, or has ended this connection, has left a last
    # message or an end of file; nothing else comes unasked. Seen before the
    # statement is sent, it costs nothing; seen after, nobody knows whether the
    # statement was carried out.
    def alive?
      @pg.status == PG::CONNECTION_OK && !@pg.socket_io.wait_readable(0)
    rescue PG::Error, IOError
      false
    end

    def query(sql, values)
      name = @prepared && prepared(sql)
      name ? @pg.exec_prepared(name, values) : @pg.exec_params(sql, values)
    rescue *UNPREPARED => e
      raise database_error(e, answered: true) unless @prepared

      @prepared = nil # for as long as this connection lives
      retry
    rescue PG::Error => e
      broken = @pg.finished? || @pg.status != PG::CONNECTION_OK
      error = database_error(e, answered: !broken)
      # A server that became a standby stays one for this connection.
      close if broken || error.sqlstate == "25006"
      raise error
    ensure
      # An exception of another thread (Thread#raise, Timeout) may leave a
      # statement half read: such a connection is of no use to anybody.
      close if @pg && !@pg.finished? && @pg.transaction_status != PG::PQTRANS_IDLE
    end

    # Named after what it says: sessions that a pooler mixes up have the same ones.
    #
    # @return [String, nil] nil: not prepared
    def prepared(sql)
      @prepared[sql] || (@prepared.size < PREPARED && "tasker_#{Digest::SHA256.hexdigest(sql)[0, 40]}".tap do |name|
        @pg.prepare(name, sql)
        @prepared[sql] = name
      end)
    end

    def database_error(error, answered:)
      result = error.respond_to?(:result) ? error.result : nil
      text = result&.error_field(PG::PG_DIAG_MESSAGE_PRIMARY) || error.message.strip
      hint = result&.error_field(PG::PG_DIAG_MESSAGE_HINT)
      state = result&.error_field(PG::PG_DIAG_SQLSTATE)
      hint = "is tasker's schema there, and as new as this gem? tasker migrate up" if MISSING.include?(state)
      DatabaseError.new([text, hint].compact.join(" – "), sqlstate: state, answered:)
    end
  end
end
