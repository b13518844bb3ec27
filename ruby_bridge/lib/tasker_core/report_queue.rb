# frozen_string_literal: true

module TaskerCore
  # Sends reports from a thread of its own, all that have come together in one
  # call and so in one transaction: no job waits for Postgres to hear of it.
  #
  # A report that comes when nothing has come for a while has no company to wait
  # for: its job sends it itself, which spares a change of threads. When they
  # come by the dozen, calls keep a few milliseconds apart, so that each carries many. While Postgres is away
  # reports wait here, up to a bound; then jobs wait for room. A report that a
  # process takes into its death is that of a lost attempt, which runs again:
  # the same as if the process had died a moment earlier.
  class ReportQueue
    # Of one call. A result may have 4 MiB.
    LIMIT_REPORTS = 500
    LIMIT_BYTES = 8 << 20
    # Of what waits.
    ROOM_REPORTS = 10_000
    ROOM_BYTES = 64 << 20
    # From one call to the next, when the last one carried a few.
    PACE_SECONDS = 0.005
    PACE_FROM = 4
    # Longer than between two reports of a process that is busy.
    LULL_SECONDS = 0.003
    # For a report whose step an open transaction holds: from one try to the next.
    HELD_SECONDS = 0.1

    Entry = Struct.new(:report, :deadline, :settled, :repeated)
    private_constant :Entry

    # @param protocol [Protocol]
    # @param lull [Numeric] seconds without a report, until the next one is sent by its job
    def initialize(protocol, lull: LULL_SECONDS, logger: TaskerCore.config.logger)
      @protocol = protocol
      @lull = lull
      @logger = logger
      @mutex = Mutex.new
      @arrived = ConditionVariable.new
      @changed = ConditionVariable.new # there is less to send than before
      @waiting = []
      @later = [] # reports that were held, and when to try them again
      @unsent = @bytes = 0 # what waits and what is being sent
      @posted = now # the last one
    end

    # Returns when there is room, and the report is sent or will be.
    #
    # @param report [String] JSON, of Report
    # @param patience [Numeric] seconds to go on while Postgres is away
    # @yieldparam refusal [String, nil] why Postgres refused the report; nil: accepted
    # @yieldparam error [DatabaseError, nil] why it could not be sent
    # @yieldparam repeated [Boolean] whether an earlier try may have been carried out unseen
    # @return [void]
    def post(report, patience:, &settled)
      entry = nil
      alone = @mutex.synchronize do
        wait_for_room until room? || Thread.current == @thread # which alone makes room
        entry = Entry.new(report, now + patience, settled, false)
        @unsent += 1
        @bytes += report.bytesize
        lull? || enqueue(entry)
      end
      send_alone(entry) if alone
    end

    # Waits until all is sent that has been posted.
    #
    # @param seconds [Numeric, nil] nil: however long it takes
    # @return [Integer] how many reports are left
    def drain(seconds = nil)
      deadline = seconds && (now + seconds)
      @mutex.synchronize do
        until @unsent.zero?
          left = deadline && (deadline - now)
          break if left && left <= 0

          @changed.wait(@mutex, left)
        end
        @unsent
      end
    end

    # Ends the thread when all is sent. For a queue that nobody posts to any more.
    def close
      @mutex.synchronize do
        @closed = true
        @arrived.signal
      end
    end

    private

    def room? = @unsent < ROOM_REPORTS && @bytes < ROOM_BYTES

    # Sidekiq gives a job three seconds after its Shutdown: it must get through.
    def wait_for_room
      Thread.handle_interrupt(Sidekiq::Shutdown => :immediate) { @changed.wait(@mutex) }
    end

    # Whether this is the only report far and wide.
    def lull?
      before = @posted
      @posted = now
      @unsent == 1 && @posted - before >= @lull
    end

    # @return [false]
    def enqueue(entry)
      start
      @waiting << entry
      @arrived.signal
      false
    end

    # By the thread of its job, which tries once. Whatever happens to that thread,
    # the report stays.
    def send_alone(entry)
      answer, = @protocol.report_free([entry.report])
      sent = true
      answer == :held ? hold(entry) : settle(entry, answer, nil)
    rescue DatabaseError => e
      if (sent = e.refuses_data?)
        settle(entry, nil, e)
      else
        entry.repeated ||= e.unanswered?
        warn_of([entry], e)
      end
    ensure
      @mutex.synchronize { enqueue(entry) } unless sent
    end

    def start
      return if @thread&.alive?

      @thread = Thread.new { work }
      @thread.name = "tasker reports"
    end

    def work
      while (batch = take)
        started = now
        deliver(batch)
        sleep [PACE_SECONDS - (now - started), 0].max if batch.size >= PACE_FROM
      end
    end

    # @return [Array<Entry>, nil] nil: closed
    def take
      @mutex.synchronize do
        wait_for_reports
        return @thread = nil if @waiting.empty? # whoever posts all the same starts another

        bytes = 0
        count = @waiting.take(LIMIT_REPORTS).take_while { |entry| (bytes += entry.report.bytesize) <= LIMIT_BYTES }.size
        @waiting.shift([count, 1].max)
      end
    end

    def wait_for_reports
      loop do
        @waiting << @later.shift.first while @later.any? && @later.first.last <= now
        return unless @waiting.empty? && !(@closed && @later.empty?)

        @arrived.wait(@mutex, @later.empty? ? nil : HELD_SECONDS)
      end
    end

    def deliver(batch)
      answers = @protocol.report_free(batch.map(&:report))
      @delay = nil
      batch.zip(answers) { |entry, answer| answer == :held ? hold(entry) : settle(entry, answer, nil) }
    rescue DatabaseError => e
      if !e.refuses_data?
        put_back(batch, e)
      elsif batch.one?
        settle(batch.first, nil, e)
      else
        # One of them is to blame, and the whole call was rolled back.
        batch.each { |entry| deliver([entry]) }
      end
    rescue Exception => e # rubocop:disable Lint/RescueException
      # A mistake of ours must not end the thread, and is no answer either.
      @logger.error { "tasker: #{batch.size} reports could not be sent: #{e.class}: #{e.message}" }
      batch.each { |entry| settle(entry, nil, DatabaseError.new(e.message)) }
    end

    # An operator's transaction, or one of the app's own, has the step: the
    # others don't wait for it.
    def hold(entry)
      return settle(entry, nil, DatabaseError.new("an open transaction holds the step")) if now >= entry.deadline

      @mutex.synchronize do
        @later << [entry, now + HELD_SECONDS]
        start
        @arrived.signal
      end
    end

    def put_back(batch, error)
      late, patient = batch.partition { |entry| now >= entry.deadline }
      late.each { |entry| settle(entry, nil, error) }
      return if patient.empty?

      patient.each { |entry| entry.repeated ||= error.unanswered? }
      @mutex.synchronize { @waiting.unshift(*patient) }
      @delay = Patience.next_delay(@delay)
      warn_of(patient, error)
      sleep Patience.scatter(@delay)
    end

    def warn_of(entries, error)
      @logger.warn { "tasker: cannot report #{entries.size} attempts yet: #{error.message}" }
    end

    def settle(entry, refusal, error)
      entry.settled&.call(refusal, error, entry.repeated)
    rescue Exception => e # rubocop:disable Lint/RescueException
      @logger.error { "tasker: after a report: #{e.class}: #{e.message}" }
    ensure
      @mutex.synchronize do
        @unsent -= 1
        @bytes -= entry.report.bytesize
        @changed.broadcast
      end
    end

    def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)
  end
end
