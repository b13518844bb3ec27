# frozen_string_literal: true

module TaskerCore
  # One attempt at one step: start it, run its handler, report.
  #
  # Whoever holds (step_id, attempt) may report once; Postgres decides. So the
  # only duty here is that a started attempt never ends in silence: each way
  # out of the handler, be it exit, throw or the end of the process, leads to a
  # report. One that can't be delivered in time is left to the heartbeat: as
  # long as the process lives, it says there that the attempt is lost.
  class AttemptRun
    # What a handler may raise and the process survives. Sidekiq::Shutdown, an
    # Interrupt, isn't among them: it ends the process, not the step.
    FAILURES = [StandardError, ScriptError, SystemStackError, NoMemoryError].freeze

    # @param step_id [Integer]
    # @param attempt [Integer]
    def initialize(step_id, attempt, protocol: TaskerCore.protocol, reports: TaskerCore.reports, config: TaskerCore.config)
      @step_id = step_id
      @attempt = attempt
      @protocol = protocol
      @reports = reports
      @config = config
    end

    # @return [void]
    # @raise [DatabaseError] the attempt could not be started or reported
    # @raise [Exception] what the handler raised, once it is reported
    def call
      # A Shutdown waits while a call to Postgres is under way, and comes
      # through in the handler and between tries.
      Thread.handle_interrupt(Sidekiq::Shutdown => :never) do
        answer = start
        answer["status"] == "started" ? run(answer) : refused(answer["reason"])
      end
    end

    private

    def start
      persist("start", @config.start_timeout) do |repeated|
        answer = @protocol.start_attempt(@step_id, @attempt, TaskerCore.process_registration.id)
        # The start may be our own, whose answer was lost: nobody would ever
        # report for it.
        report_lost if repeated && answer["status"] != "started"
        answer
      end
    end

    def refused(reason)
      logger.info { "tasker: #{self} not started: #{reason}" }
    end

    def run(answer)
      @handler = answer.dig("step", "handler_class")
      handler = interruptible { HandlerLookup.find(@handler) }
      if handler.transactional?
        settle_in_transaction(handler, answer)
      else
        result = handle(handler, answer)
      end
    rescue *FAILURES => e
      reported = true
      shutdown?(e) ? report_lost : report_failure(e)
      raise if @config.reraise_errors || shutdown?(e)
    else
      reported = true
      report_success(result) if result
    ensure
      report_abandoned($ERROR_INFO) unless reported
    end

    # @return [String] JSON
    def handle(handler, answer)
      interruptible do
        task = TaskContext.new(answer.fetch("task"))
        step = StepContext.new(answer.fetch("step"), heartbeat: heartbeat(answer.fetch("step")))
        sequence = StepSequence.new(task.task_id, answer.fetch("dependencies"), protocol: @protocol)
        Sidekiq::Context.with(log_context(task, step)) do
          @config.surroundings.call(task, step) { ResultJson.dump(handler.new.handle(task, sequence, step)) }
        end
      end
    end

    def heartbeat(step)
      @heartbeat = Heartbeat.new(@step_id, @attempt, step["heartbeat_seconds"], protocol: @protocol, logger:)
    end

    # What Sidekiq's logger writes beside each line of the handler.
    def log_context(task, step)
      { task: task.task_id, step: step.name, attempt: @attempt, correlation_id: task.correlation_id,
        parent_task: task.parent_task_id }.compact
    end

    # The handler's writes and its result commit together, or not at all. When
    # nobody knows whether they did, the failure that is then reported finds
    # out: it is refused if they did.
    def settle_in_transaction(handler, answer)
      database = ActiveRecordDatabase.new
      database.transaction do
        result = handle(handler, answer)
        refusal, = Protocol.new(database).report([Report.success(@step_id, @attempt, result)])
        if refusal
          logger.warn { "tasker: report of #{self} refused, its transaction is rolled back: #{refusal}" }
          raise ActiveRecord::Rollback
        end
      ensure
        # ActiveRecord before 7.1 commits when a block is left by throw.
        raise Error, "the handler left its transaction by throw" unless refusal || result || $ERROR_INFO
      end
      nil
    end

    def interruptible(&) = Thread.handle_interrupt(Sidekiq::Shutdown => :immediate, &)

    # A handler that rescues Exception may have wrapped the Shutdown.
    def shutdown?(error)
      seen = {}.compare_by_identity
      while error && !seen.key?(error)
        return true if error.is_a?(Sidekiq::Shutdown)

        seen[error] = true
        error = error.cause
      end
      false
    end

    def report_success(result)
      deliver Report.success(@step_id, @attempt, result)
    rescue DatabaseError => e
      raise unless e.refuses_data?

      # JSON that jsonb doesn't take, such as a number of 200,000 digits.
      report_failure ResultNotSerializableError.new("Postgres doesn't take the result: #{e.message}")
    end

    def report_failure(error)
      @heartbeat&.flush # the next attempt goes on from there
      deliver Report.failure(@step_id, @attempt, FailureRecord.new(error, handler: @handler).to_h)
    end

    # The handler called exit, threw past us, raised an Exception of its own
    # making, or was told to stop. Only what stops the process is no fault of
    # the step.
    def report_abandoned(error)
      if error.nil? || error.is_a?(SignalException)
        report_lost
      else
        report_failure(error)
      end
    end

    # Best effort: whoever waits for this process to end has little patience.
    def report_lost
      refusal = @reports.report(Report.lost(@step_id, @attempt))
      logger.info { "tasker: #{self} given up#{": refused, #{refusal}" if refusal}" }
    rescue DatabaseError => e
      leave_to_heartbeat(e)
    end

    def leave_to_heartbeat(error)
      logger.error { "tasker: #{self} is left to the heartbeat, to be reported as lost: #{error.message}" }
      TaskerCore.process_registration.forsake(@step_id, @attempt)
    end

    def deliver(report)
      persist("report", @config.report_timeout) do |repeated|
        refusal = @reports.report(report)
        # A refusal of a repeated report is most likely the echo of the first.
        logger.public_send(repeated ? :info : :warn) { "tasker: report of #{self} refused: #{refusal}" } if refusal
      end
    end

    def persist(verb, seconds, &)
      Patience.new(seconds:, activity: "#{verb} #{self}", logger:).persist(&)
    rescue DatabaseError => e
      leave_to_heartbeat(e) unless e.refuses_data?
      raise
    end

    def logger = @config.logger

    def to_s = "step #{@step_id} attempt #{@attempt}#{" (#{@handler})" if @handler}"
  end
end
