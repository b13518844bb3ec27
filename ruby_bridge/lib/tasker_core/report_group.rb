# frozen_string_literal: true

module TaskerCore
  # Sends the reports of jobs that end at the same time in one call: one
  # transaction for all of them. Each job still waits for its own answer.
  #
  # Nobody waits for company. Whoever finds no call under way sends what is
  # there; what comes meanwhile goes with the next call. So a single report is
  # as quick as without the group, and many cost little each.
  class ReportGroup
    # Of one call. A result may have 4 MiB.
    LIMIT_REPORTS = 100
    LIMIT_BYTES = 8 << 20

    Entry = Struct.new(:report, :answered, :refusal, :error)
    private_constant :Entry

    # @param protocol [Protocol]
    def initialize(protocol)
      @protocol = protocol
      @mutex = Mutex.new
      @changed = ConditionVariable.new
      @waiting = []
      @sending = false
    end

    # @param report [String] JSON, of Report
    # @return [String, nil] nil: accepted; else why it was refused
    # @raise [DatabaseError]
    def report(report)
      entry = Entry.new(report)
      @mutex.synchronize { @waiting << entry }
      send_next until answered?(entry)
      raise entry.error if entry.error

      entry.refusal
    end

    private

    # Waits while somebody else's call is under way.
    def answered?(entry)
      @mutex.synchronize do
        @changed.wait(@mutex) until entry.answered || !@sending
        @sending = true unless entry.answered
        entry.answered
      end
    end

    def send_next
      batch = @mutex.synchronize { take }
      deliver(batch)
    ensure
      # Also when this thread is killed: the others must not wait for it.
      @mutex.synchronize do
        batch&.each { |entry| settle(entry, DatabaseError.new("interrupted", answered: false)) unless entry.answered }
        @sending = false
        @changed.broadcast
      end
    end

    def take
      bytes = 0
      count = @waiting.take(LIMIT_REPORTS).take_while { |entry| (bytes += entry.report.bytesize) <= LIMIT_BYTES }.size
      @waiting.shift([count, 1].max)
    end

    def deliver(batch)
      batch.zip(@protocol.report(batch.map(&:report))) { |entry, refusal| settle(entry, nil, refusal) }
    rescue DatabaseError => e
      if batch.one? || !e.refuses_data?
        # An exception of its own for each thread that raises it.
        batch.each { |entry| settle(entry, e.dup) }
      else
        # One of them is to blame, and the whole call was rolled back.
        batch.each { |entry| deliver([entry]) }
      end
    end

    def settle(entry, error, refusal = nil)
      entry.error = error
      entry.refusal = refusal
      entry.answered = true
    end
  end
end
