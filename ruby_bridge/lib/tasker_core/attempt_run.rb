# frozen_string_literal: true

module TaskerCore
  # One attempt that has been started: run its handler, report.
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

    # @param answer [StartAnswer] of an attempt that was started
    def initialize(answer, protocol: TaskerCore.protocol, reports: TaskerCore.reports, config: TaskerCore.config)
      @step_id = answer.step_id
      @attempt = answer.attempt
      @secret = answer.secret
      @answer = answer
      @handler = answer.handler_class
      @protocol = protocol
      @reports = reports
      @config = config
    end

    # With Sidekiq::Shutdown held off.
    #
    # @return [Exception, nil] what the handler raised and Sidekiq is to hear of
    # @raise [Exception] what ends more than this attempt
    def call
      handler = interruptible { ErrorReports.around_lookup(@answer, @config) { HandlerLookup.find(@handler) } }
      if handler.transactional?
        settle_in_transaction(handler)
      else
        result = handle(handler)
      end
    rescue *FAILURES => e
      reported = true
      ActiveRecordDatabase.release_connections # it may be one of them that is broken
      raise_after_loss(e) if SidekiqErrors.shutdown?(e)
      report_failure(e)
    else
      reported = true
      report_success(result) if result
      nil
    ensure
      report_abandoned($ERROR_INFO) unless reported
    end

    # Never begun: the handler has not been called.
    def give_up = report_lost

    private

    # @return [String] JSON
    def handle(handler)
      interruptible do
        facts = @answer.to_h # read here, so that one which can't be read fails alone
        task = TaskContext.new(facts.fetch("task"))
        step = StepContext.new(facts.fetch("step"), inputs: task.context, dependencies: facts.fetch("dependencies"), heartbeat:)
        sequence = StepSequence.new(task.task_id, facts.fetch("dependencies"), protocol: @protocol)
        timed do
          Sidekiq::Context.with(log_context(task, step)) do
            @config.surroundings.call(task, step) { ResultJson.dump(handler.new.handle(task, sequence, step)) }
          end
        end
      end
    end

    def timed
      started = Process.clock_gettime(Process::CLOCK_MONOTONIC)
      yield
    ensure
      TaskerCore.handler_times.record(@handler, Process.clock_gettime(Process::CLOCK_MONOTONIC) - started)
    end

    def heartbeat
      @heartbeat = Heartbeat.new(@step_id, @attempt, @answer.heartbeat_seconds, secret: @secret, protocol: @protocol, logger:)
    end

    # What Sidekiq's logger writes beside each line of the handler.
    def log_context(task, step)
      { task: task.task_id, step: step.name, attempt: @attempt, correlation_id: task.correlation_id,
        parent_task: task.parent_task_id }.compact
    end

    # The handler's writes and its result commit together, or not at all. When
    # nobody knows whether they did, the failure that is then reported finds
    # out: it is refused if they did.
    def settle_in_transaction(handler)
      database = ActiveRecordDatabase.new
      database.transaction do
        result = handle(handler)
        refusal, = Protocol.new(database).report([Report.success(@step_id, @attempt, result, @secret)])
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

    def raise_after_loss(error)
      report_lost
      raise error
    end

    def report_success(result)
      post(Report.success(@step_id, @attempt, result, @secret)) do |error|
        next leave_to_heartbeat(error) unless error.refuses_data?

        # JSON that jsonb doesn't take, such as a number of 200,000 digits.
        error = report_failure(ResultNotSerializableError.new("Postgres doesn't take the result: #{error.message}"))
        SidekiqErrors.handle(error) if error # the job has ended
      end
    end

    # @return [Exception, nil] the error, when Sidekiq is to hear of it
    def report_failure(error)
      @heartbeat&.flush # the next attempt goes on from there
      failure = FailureRecord.new(error, handler: @handler).to_h
      post(Report.failure(@step_id, @attempt, failure, @secret)) { |e| leave_to_heartbeat(e) }
      error if @config.reraise?(final: failure["permanent"] || @answer.last_attempt?)
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
      logger.info { "tasker: #{self} given up" }
      post(Report.lost(@step_id, @attempt, @secret), patience: 0) { |error| leave_to_heartbeat(error) }
    end

    # @yieldparam error [DatabaseError] it could not be delivered
    def post(report, patience: @config.report_timeout)
      @reports.post(report, patience:) do |refusal, error, repeated|
        yield error if error
        # A refusal of a repeated report is most likely the echo of the first.
        logger.public_send(repeated ? :info : :warn) { "tasker: report of #{self} refused: #{refusal}" } if refusal
      end
    rescue Sidekiq::Shutdown => e
      leave_to_heartbeat(e) # it came while the report waited for room
      raise
    end

    def leave_to_heartbeat(error)
      logger.error { "tasker: #{self} is left to the heartbeat, to be reported as lost: #{error.message}" }
      TaskerCore.process_registration.forsake(@step_id, @attempt, @secret)
    end

    def logger = @config.logger

    def to_s = "step #{@step_id} attempt #{@attempt}#{" (#{@handler})" if @handler}"
  end
end
