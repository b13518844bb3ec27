# frozen_string_literal: true

require "time"

module TaskerCore
  # A Ruby app's view of the engine. It runs no step itself, and decides
  # nothing: workers do, with the app's Sidekiq. It asks for a run, says how a
  # task stands, and waits for its end.
  #
  #   coordinator = TaskerCore::WorkflowCoordinator.new
  #   coordinator.wait(task_id, timeout: 10).result_of("charge")
  #
  # It sees what is committed, on connections of the gem's own. With a
  # connection it asks there, and so sees what that one's transaction sees.
  class WorkflowCoordinator
    TIMES = %w[created_at started_at finished_at retry_at next_retry_at last_failure_at].freeze

    # @param connection [PG::Connection, ActiveRecord::ConnectionAdapters::AbstractAdapter, nil]
    #   nil: the gem's own
    def initialize(connection: nil)
      @queries = WorkflowQueries.new(connection)
    end

    # Asks for a run, and says how the task stands. A task runs by itself as soon
    # as its transaction commits, so there is mostly nothing to ask for: a task
    # that a worker is on, that is paused or has ended is left alone, and so is
    # one that was enqueued for later (see #run_now). One that waits for a retry
    # gets it now.
    #
    # @param task_id [Integer]
    # @return [TaskResult]
    # @raise [TaskNotFoundError]
    def execute_task_workflow(task_id)
      task_id = id(task_id)
      begin
        missing!(task_id) unless @queries.ask_for_run(task_id)
      rescue StateTransitionError
        nil # it has ended meanwhile
      end
      status(task_id)
    end
    alias handle execute_task_workflow

    # Starts now what was enqueued for later or waits for its retry, as `tasker
    # task run-now` does: an operator's decision, recorded with name and reason.
    #
    # @param task_id [Integer]
    # @param who [String, nil]
    # @param why [String, nil]
    # @return [void]
    # @raise [TaskNotFoundError]
    # @raise [StateTransitionError] it has ended
    def run_now(task_id, who: nil, why: nil)
      task_id = id(task_id)
      @queries.run_now(task_id, who, why)
      nil
    rescue NotFoundError
      missing!(task_id)
    end

    # @param task_id [Integer]
    # @return [TaskResult] as it is now
    # @raise [TaskNotFoundError]
    def status(task_id)
      task_id = id(task_id)
      answer = @queries.task(task_id) || missing!(task_id)
      steps = (answer["steps"] || []).map { |step| build(StepResult, step) }
      build(TaskResult, answer.merge("steps" => steps))
    end

    # Which steps may start now. For looking: starting them is the engine's.
    #
    # @param task_id [Integer]
    # @return [Array<ViableStep>] in the template's order; none for a task that is unknown
    def viable_steps(task_id) = @queries.viable_steps(id(task_id)).map { |step| build(ViableStep, step) }

    # Waits, without asking again and again, until the task has ended.
    #
    # @param task_id [Integer]
    # @param timeout [Numeric] seconds
    # @return [TaskResult]
    # @raise [TimeoutError] the task goes on all the same
    # @raise [TaskNotFoundError] also while the transaction that inserts it is open
    def wait(task_id, timeout:)
      result = status(task_id)
      return result if result.finished?

      ended = TaskerCore.task_ends.wait(result.task_id, timeout:)
      result = status(task_id)
      return result if ended || result.finished?

      raise TimeoutError, "task #{task_id} (#{result.namespace}/#{result.name}) has not ended within #{timeout} s: " \
                          "it is #{result.state}, #{result.execution_status.tr('_', ' ')}"
    end

    private

    def id(task_id)
      Integer(task_id)
    rescue ArgumentError, TypeError
      raise ValidationError, "a task_id is an Integer, not #{task_id.inspect}"
    end

    def missing!(task_id)
      raise TaskNotFoundError, "there is no task #{task_id}, or the transaction that inserts it has not committed"
    end

    def build(type, answer)
      type.new(**answer.to_h { |name, value| [name.to_sym, TIMES.include?(name) && value ? Time.iso8601(value).utc : value] })
    end
  end
end
