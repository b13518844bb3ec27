# frozen_string_literal: true

require "digest"

module TaskerCore
  # A job class of the team's, Sidekiq's or ActiveJob's, that runs as a step as
  # it is. Stands where a handler's class stands.
  #
  # The engine alone decides on retries: what the class says about them is
  # either ignored (Sidekiq's retry) or becomes the error that says the same to
  # the engine (ActiveJob's retry_on and discard_on). docs/rails.md has it all.
  class AdoptedJob
    # Jobs of libraries that run whatever their arguments name. A template must
    # not get at those.
    FOREIGN = /\A(TaskerCore|Sidekiq|ActiveJob|ActionMailer|ActionMailbox|ActiveStorage|ActiveRecord|Turbo)::/

    class << self
      # @param job_class [Object]
      # @return [AdoptedJob, nil] nil: it is not a job of the team's
      def for(job_class, allowed: TaskerCore.config.adopt_jobs)
        return unless job_class.is_a?(Class) && own?(job_class)
        return unless allowed == true || (allowed.is_a?(Array) && allowed.include?(job_class.name))

        if defined?(ActiveJob::Base) && job_class < ActiveJob::Base
          AdoptedActiveJob.new(job_class)
        elsif job_class < (defined?(Sidekiq::Job) ? Sidekiq::Job : Sidekiq::Worker)
          AdoptedSidekiqJob.new(job_class)
        end
      end

      private

      # Neither such a job nor a subclass of one, but of ActiveJob::Base.
      def own?(job_class)
        job_class.ancestors.grep(Class).none? { |ancestor| FOREIGN.match?(ancestor.name) && ancestor.name != "ActiveJob::Base" }
      end
    end

    # @return [Class]
    attr_reader :job_class

    def initialize(job_class) = @job_class = job_class

    # @return [String]
    def name = job_class.name

    def transactional? = false

    # @return [AdoptedJob] it keeps nothing of an attempt
    def new = self

    # Runs one attempt, as BaseStepHandler#handle does.
    #
    # @return [Object] what the job returned if that is JSON, else nil: a job's
    #   return value was not meant for anybody
    def handle(task, sequence, step)
      result = run(AdoptedArguments.new(task, sequence, step), task, step)
      ResultJson.dump(result)
      result
    rescue ResultNotSerializableError, ResultTooLargeError
      nil
    end

    private

    # @return [String] the same as that of the StepJob
    def jid(step) = Digest::SHA256.hexdigest("#{step.step_id}:#{step.attempt}")[0, 24]
  end

  # Runs perform of a class that includes Sidekiq::Job, or Sidekiq::Worker as it
  # was called. sidekiq_retries_exhausted is called when no attempt follows.
  #
  # Sidekiq's server middleware is not called a second time: it has seen the
  # StepJob, whose arguments name this class as "handler".
  class AdoptedSidekiqJob < AdoptedJob
    private

    def run(arguments, task, step)
      values = arguments.positional
      job = job_class.new
      job.jid = jid(step)
      job.perform(*values, **arguments.keywords)
    rescue *AttemptRun::FAILURES => e
      exhausted(e, values || [], task, step) if ErrorReports.final?(e, step)
      raise
    end

    def exhausted(error, values, task, step)
      block = job_class.sidekiq_retries_exhausted_block or return

      block.call({ "class" => name, "args" => values, "jid" => jid(step), "queue" => job_class.get_sidekiq_options["queue"].to_s, "retry" => false,
                   "error_class" => error.class.name, "error_message" => error.message,
                   "tasker" => { "task_id" => task.task_id, "step_id" => step.step_id, "attempt" => step.attempt } }, error)
    rescue StandardError => e
      TaskerCore.logger.error { "tasker: sidekiq_retries_exhausted of #{name} raised #{e.class}: #{e.message}" }
    end
  end

  # Runs an ActiveJob with its callbacks, as perform_now does.
  class AdoptedActiveJob < AdoptedJob
    # Keeps a job from enqueuing itself: it says to the engine what it would
    # have said to its queue.
    module Intercepted
      # @return [Hash, nil] options of the last retry_job
      attr_reader :asked_retry
      # @return [Array(String, Exception), nil] the code of the failure, and the error
      attr_accessor :given_up

      def retry_job(options = {})
        @asked_retry = options
        self
      end
    end

    # Public events of ActiveJob's: an error was swallowed for good.
    GIVEN_UP = { "discard.active_job" => "discarded", "retry_stopped.active_job" => "retries_stopped" }.freeze

    class << self
      # Once per process. Events of jobs that are no steps are left alone.
      def watch
        @watch ||= GIVEN_UP.map do |event, code|
          ActiveSupport::Notifications.subscribe(event) do |*, payload|
            payload[:job].given_up = [code, payload[:error]] if payload[:job].is_a?(Intercepted)
          end
        end
      end
    end

    private

    def run(arguments, _task, step)
      self.class.watch
      job = job_class.new(*arguments.positional, **arguments.keywords).extend(Intercepted)
      job.job_id = job_id(step)
      job.provider_job_id = jid(step)
      # Counted as the engine counts, also by retry_on for its errors.
      job.executions = step.attempts_used - 1
      job.exception_executions = Hash.new(step.attempts_used - 1)
      settled(job) { job.perform_now }
    end

    def settled(job)
      begin
        result = yield
      rescue StandardError
        raise unless job.given_up # retry_on without a block raises what it gives up on
      end
      raise given_up(*job.given_up), cause: job.given_up.last if job.given_up
      raise retryable(job.asked_retry), cause: job.asked_retry[:error] if job.asked_retry

      result
    end

    def given_up(code, error)
      failure("#{error.class}: #{error.message}", error) { |message| PermanentError.new(message, error_code: code) }
    end

    def retryable(options)
      error = options[:error]
      message = error ? "#{error.class}: #{error.message}" : "#{name} asked to be retried"
      failure(message, error) { |text| RetryableError.new(text, retry_after: options[:wait] || options[:wait_until]) }
    end

    # With the backtrace of what happened in the job.
    def failure(message, error)
      yield(message).tap { |failure| failure.set_backtrace(error.backtrace) if error&.backtrace }
    end

    # The same for all attempts at a step, as ActiveJob's is for all retries of a job.
    def job_id(step)
      hex = Digest::SHA256.hexdigest(step.idempotency_key)
      [hex[0, 8], hex[8, 4], "8#{hex[13, 3]}", "8#{hex[17, 3]}", hex[20, 12]].join("-") # a UUID of version 8
    end
  end
end
