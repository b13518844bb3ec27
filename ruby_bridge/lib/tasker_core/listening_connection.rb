# frozen_string_literal: true

module TaskerCore
  # A Connection that is notified on a channel: LISTEN again whenever it opens.
  class ListeningConnection < Connection
    # @param parameters [#call] gives what PG.connect takes
    # @param channel [String] an SQL identifier
    def initialize(parameters, channel)
      super(parameters)
      @channel = channel
    end

    # @return [Boolean] whether it had to be opened: notifications may have been missed
    # @raise [DatabaseError]
    def listen
      before = @pg
      open_unless_alive
      return false if @pg.equal?(before)

      @pg.set_notice_processor { nil } # a farewell of the server; libpq would print it
      query("LISTEN #{@channel}", [])
      true
    end

    # Waits for a notification, or for another thread that writes to the pipe.
    #
    # @param seconds [Numeric, nil] nil: as long as it takes
    # @param pipe [IO]
    # @return [void]
    def wait(seconds, pipe)
      IO.select([@pg.socket_io, pipe], nil, nil, seconds)
    end

    # @return [Array<String>] payloads that have come
    # @raise [DatabaseError]
    def notifications
      @pg.consume_input
      payloads = []
      while (notification = @pg.notifies)
        payloads << notification[:extra]
      end
      payloads
    rescue PG::Error => e
      close
      raise database_error(e, answered: true)
    end

    private

    # What is there to read need not be a farewell here.
    def alive?
      @pg.consume_input
      @pg.status == PG::CONNECTION_OK
    rescue PG::Error, IOError
      false
    end
  end
end
