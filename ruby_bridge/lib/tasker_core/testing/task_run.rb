# frozen_string_literal: true

module TaskerCore
  module Testing
    # Runs a template inline, on a clock that no test has to wait for.
    #
    # A test double of the engine: the same order, retries, delays (without
    # jitter), limits and ends; contract/workflow_runs.json is held against both.
    # Attempts of one wave begin at the same time and run one after another. It
    # knows no operators, no gates, no lost attempts, and doesn't check JSON Schemas.
    class TaskRun
      # What is known of a step while it runs.
      Standing = Struct.new(:spec, :id, :handler, :state, :attempts, :result, :error, :progress, :due) do
        def satisfied? = %w[complete skipped].include?(state)
      end

      EVENTS = { "complete" => "step.completed", "waiting_for_retry" => "step.retry_requested", "skipped" => "step.skipped",
                 "error" => "step.failed" }.freeze

      # @param template [Template]
      # @param context [Hash] JSON values
      # @param stub [Hash{String => Object}] by step, as for Handler.stub
      # @param skip [Array<String>] names of steps that are skipped from the start
      # @param attempts [Integer, Hash{String => Integer}, nil] how many each step may use up, instead of the template's limit
      # @param task [Hash{String => Object}] other members of the task
      # @param clock [Clock]
      def initialize(template, context, stub: {}, skip: [], attempts: nil, task: {}, clock: Clock.new)
        @template = template
        @attempts = attempts
        @clock = clock
        @began = clock.now
        @deadline = template.deadline_seconds && (@began + template.deadline_seconds)
        @task = { "task_id" => Testing.next_id, "namespace" => template.namespace, "name" => template.name, "version" => template.version,
                  "context" => context, "priority" => 2, "created_at" => JsonTree.build(@began), **task }
        stub = stub.transform_keys(&:to_s)
        skip = Array(skip).map(&:to_s)
        refuse_unknown(stub.keys + skip)
        @steps = template.steps.to_h { |spec| [spec.name, standing(spec, stub, skip.include?(spec.name))] }
        @order = template.steps.map(&:name).each_with_index.to_h
        @tried = []
        @log = []
        @events = []
      end

      # @return [Run]
      def call
        event "task.start_requested"
        until ended?
          wave = next_wave
          wave.any? ? run(wave) : wait
        end
        finish
      end

      private

      def standing(spec, stub, skipped)
        handler = if stub.key?(spec.name) then Handler.stub(stub[spec.name])
                  elsif spec.handler_class then Handler.of(spec.handler_class)
                  elsif !skipped
                    raise StubMissingError, "step #{spec.name.inspect} of #{@template.full_name} has the Go handler #{spec.handler}, which runs in a " \
                                            "worker, not here: give stub: { #{spec.name.inspect} => { …its result… } }, or skip: [#{spec.name.inspect}]"
                  end
        Standing.new(spec, Testing.next_id, handler, skipped ? "skipped" : "pending", [])
      end

      def refuse_unknown(names)
        unknown = (names - @template.steps.map(&:name)).first
        raise InputError, "#{@template.full_name} has no step #{unknown.inspect}; it has #{@template.steps.map(&:name).join(', ')}" if unknown
      end

      def ended? = @error || @steps.each_value.none? { |step| may_run?(step) }

      def stopping? = @template.fail_fast? && failed.any?

      def failed = @steps.each_value.select { |step| step.state == "error" }

      def may_run?(step)
        !stopping? && %w[pending waiting_for_retry].include?(step.state) && step.spec.depends_on.all? { |name| @steps[name].satisfied? }
      end

      def ready = @steps.each_value.select { |step| may_run?(step) && (step.due.nil? || step.due <= @clock.now) }

      # In the order of the template. When there isn't room for all, those that were
      # not tried just now go first, as the engine claims them with the outcome of
      # the others.
      def next_wave
        again, others = ready.partition { |step| @tried.include?(step.spec.name) }
        (others + again).first(@template.max_parallel_steps).sort_by { |step| @order[step.spec.name] }
      end

      # Nothing may begin: until the first retry is due.
      def wait
        due = @steps.each_value.select { |step| may_run?(step) }.map(&:due).min
        @clock.advance([due, @deadline].compact.min - @clock.now)
        @tried = []
        expire if late?
      end

      # All begin before the first has ended.
      def run(wave)
        began = since(@clock.now)
        @tried = wave.map { |step| step.spec.name }
        answers = wave.map { |step| begin_attempt(step) }
        wave.zip(answers).each_with_index do |(step, answer), index|
          outcome = Attempt.new(step.handler, answer, steps: @steps.transform_values { |other| [other.state, other.result] }, clock: @clock).call
          step.progress = outcome.progress
          return expire(wave.drop(index), began) if late?

          settle(step, outcome, began)
        end
      end

      def late? = @deadline && @deadline <= @clock.now && @clock.now > @began

      def begin_attempt(step)
        step.state = "in_progress"
        number = step.attempts.length + 1
        event "step.execution_requested", step, number if step.spec.handler_class
        event "step.handle", step, number
        { "task" => @task, "dependencies" => step.spec.depends_on.to_h { |name| [name, @steps[name].result] },
          "step" => { "step_id" => step.id, "idempotency_key" => "tasker-test-#{step.id}",
                      "name" => step.spec.name, "attempt" => number, "attempts_used" => number, "attempt_limit" => limit(step),
                      "handler_class" => step.spec.handler_class || step.spec.handler, "config" => step.spec.config, "progress" => step.progress,
                      "timeout_seconds" => step.spec.timeout_seconds, "heartbeat_seconds" => step.spec.heartbeat_seconds,
                      "depends_on" => step.spec.depends_on } }
      end

      def limit(step)
        (@attempts.is_a?(Hash) ? @attempts.transform_keys(&:to_s)[step.spec.name] : @attempts) || step.spec.limit
      end

      def settle(step, outcome, began)
        delay = delay_of(step, outcome) unless outcome.success?
        step.due = delay && (@clock.now + Clock.seconds(delay))
        step.result = outcome.result
        record(step, outcome, began, state_after(step, outcome, delay), delay)
      end

      def record(step, outcome, began, state, delay = nil)
        step.state = state
        step.error = outcome.error || step.error
        step.attempts << Run::Attempt.new(step: step.spec.name, number: step.attempts.length + 1, at: began, outcome:, delay:, state:)
        @log << step.attempts.last
        event EVENTS.fetch(state), step, step.attempts.length
      end

      def state_after(step, outcome, delay)
        return "complete" if outcome.success?
        return "waiting_for_retry" if delay

        step.spec.skippable ? "skipped" : "error"
      end

      # nil: no further attempt.
      def delay_of(step, outcome)
        used = step.attempts.length + 1
        return if outcome.permanent? || used >= limit(step)

        policy = step.spec.retry_policy
        policy.asked_delay(outcome.error["retry_after"], @clock.now) || policy.delay(used)
      end

      # Attempts that are out fail; what has not begun stays as it is.
      def expire(out = [], began = nil)
        message = "the deadline of the task passed (#{@template.deadline_seconds} s after it was enqueued)"
        out.each do |step|
          failure = { "class" => "task_deadline", "code" => "task_deadline", "message" => message, "attempt" => step.attempts.length + 1 }
          record(step, Outcome.new(error: failure), began, "error")
        end
        @error = { "code" => "task_deadline", "steps" => out.map { |step| step.spec.name }, "message" => message }
      end

      def finish
        names = failed.map { |step| step.spec.name }
        @error ||= { "message" => "#{names.one? ? '1 step' : "#{names.size} steps"} failed: #{names.join(', ')}", "steps" => names } if names.any?
        event @error ? "task.failed" : "task.completed"
        steps = @steps.transform_values { |step| Run::Step.new(name: step.spec.name, **step.to_h.slice(:state, :attempts, :result, :error)) }
        Run.new(template: @template.full_name, state: @error ? "error" : "complete", error: @error, elapsed: since(@clock.now), attempts: @log,
                events: @events, steps:)
      end

      def event(name, step = nil, attempt = nil)
        @events << Run::Event.new(name:, step: step&.spec&.name, attempt:, at: since(@clock.now))
      end

      # Seconds since the task began.
      def since(time)
        seconds = (time - @began).round(9)
        seconds == seconds.to_i ? seconds.to_i : seconds
      end
    end
  end
end
