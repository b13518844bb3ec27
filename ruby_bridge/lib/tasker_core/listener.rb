# frozen_string_literal: true

require "securerandom"
require "socket"

module TaskerCore
  # One thread and one connection per process that hear what Postgres notifies,
  # however many wait for something. Notifications only make it quick: whoever
  # waits is also asked to look, when he says and whenever the connection was
  # opened anew.
  #
  # A part is whoever waits for one kind of payload ("task 7" is of kind "task"):
  #
  #   due_in             seconds until it wants to look; nil: it doesn't
  #   look(protocol)     looks, with an EventProtocol on this thread's connection
  #   heard(text)        the rest of a payload of its kind
  #   reconnected        what was notified until now may be lost
  class Listener
    RETRY_SECONDS = 1

    # @return [String] the channel of this process
    attr_reader :channel

    # @param parameters [#call] gives what PG.connect takes
    def initialize(parameters: DatabaseParameters.method(:current))
      @channel = "tasker_#{SecureRandom.hex(8)}"
      @connection = ListeningConnection.new(parameters, @channel)
      @protocol = EventProtocol.new(@connection)
      @parts = {}
      @mutex = Mutex.new
    end

    # @param kind [String]
    # @return [void]
    def add(kind, part)
      @mutex.synchronize { @parts = @parts.merge(kind => part) }
    end

    # Has the thread ask its parts again when they are due; starts it.
    #
    # @return [void]
    def ring
      @mutex.synchronize { start unless @thread&.alive? }
      @bell.write_nonblock(".", exception: false)
    end

    # @return [void]
    def stop
      thread = @mutex.synchronize do
        @stopping = true
        @bell&.write_nonblock(".", exception: false)
        @thread
      end
      thread&.join(5)
    end

    # In the child of a fork, which is another process.
    def discard = @connection.discard

    private

    def start
      @stopping = false
      @pipe, @bell = IO.pipe
      @thread = Thread.new { live }
      @thread.name = "tasker listener"
    end

    def live
      attend until @stopping
    ensure
      @connection.close
    end

    def attend
      @parts.each_value(&:reconnected) if @connection.listen
      recovered
      @parts.each_value { |part| part.look(@protocol) if part.due_in&.<=(0) }
      @connection.wait(@parts.each_value.filter_map(&:due_in).min&.clamp(0..), @pipe)
      @pipe.read_nonblock(1024, exception: false)
      @connection.notifications.each { |payload| hear(payload) }
    rescue StandardError => e
      failed(e)
    end

    def hear(payload)
      kind, text = payload.split(" ", 2)
      @parts[kind]&.heard(text)
    end

    def failed(error)
      TaskerCore.config.logger.warn { "tasker: not listening to Postgres, will try again: #{error.message} (#{error.class})" } unless @failed
      @failed = true
      @pipe.wait_readable(RETRY_SECONDS)
      @pipe.read_nonblock(1024, exception: false)
    end

    def recovered
      TaskerCore.config.logger.info { "tasker: listening to Postgres again" } if @failed
      @failed = false
    end
  end
end
