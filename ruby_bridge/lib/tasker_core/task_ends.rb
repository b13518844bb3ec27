# frozen_string_literal: true

module TaskerCore
  # Waits for the ends of tasks.
  #
  #   TaskerCore.task_ends.wait(task_id, timeout: 30) # => true
  #
  # Any number of threads wait on the process's one Listener. A notification
  # that is lost costs time, not the answer: everybody's task is looked at
  # again, at first after milliseconds (its last transaction may just be
  # committing), then ever more rarely.
  class TaskEnds
    FIRST_PAUSE_SECONDS = 0.005
    LONGEST_PAUSE_SECONDS = 2
    RENEW_SECONDS = 20

    Waiter = Struct.new(:task_id, :condition, :ended, :pause, :look_at)
    private_constant :Waiter

    # @param listener [Listener]
    # @param protocol [#call] gives an EventProtocol
    def initialize(listener, protocol: -> { EventProtocol.new(TaskerCore.database) })
      @listener = listener
      @protocol = protocol
      @mutex = Mutex.new
      @waiters = {}.compare_by_identity
      @listener.add("task", self)
    end

    # @param task_id [Integer]
    # @param timeout [Numeric, nil] seconds; nil: as long as it takes
    # @return [Boolean] true: the task has ended (complete, error, cancelled or
    #   resolved_manually); false: it had not when the time was up
    # @raise [DatabaseError] there is no such task, or Postgres is away at the
    #   start; later, it is waited for
    def wait(task_id, timeout: nil)
      task_id = Integer(task_id)
      deadline = now + timeout if timeout
      waiter = add(task_id)
      @listener.ring
      @protocol.call.await_task(task_id, @listener.channel) || wait_for(waiter, deadline)
    ensure
      remove(waiter) if waiter
    end

    # @private
    def due_in
      time = @mutex.synchronize { [*@waiters.each_key.map(&:look_at), @renew_at].compact.min }
      time && (time - now)
    end

    # @private
    def look(protocol)
      due = @mutex.synchronize { @waiters.each_key.select { |waiter| waiter.look_at <= now }.each { |waiter| put_off(waiter) } }
      protocol.ended_tasks(due.map(&:task_id).uniq).each { |task_id| ended(task_id) } if due.any?
      renew(protocol) if @renew_at && @renew_at <= now
    end

    # @private
    def heard(text) = ended(text.to_i)

    # @private
    def reconnected
      @mutex.synchronize do
        @waiters.each_key { |waiter| waiter.look_at = now }
        @renew_at &&= now
      end
    end

    private

    def add(task_id)
      waiter = Waiter.new(task_id, ConditionVariable.new, false, FIRST_PAUSE_SECONDS, now + FIRST_PAUSE_SECONDS)
      @mutex.synchronize do
        @renew_at ||= now + RENEW_SECONDS
        @waiters[waiter] = true
      end
      waiter
    end

    def remove(waiter) = @mutex.synchronize { @waiters.delete(waiter) }

    def wait_for(waiter, deadline)
      @mutex.synchronize do
        until waiter.ended
          rest = deadline && (deadline - now)
          break if rest && rest <= 0

          waiter.condition.wait(@mutex, rest)
        end
        waiter.ended
      end
    end

    def put_off(waiter)
      waiter.look_at = now + waiter.pause
      waiter.pause = [waiter.pause * 4, LONGEST_PAUSE_SECONDS].min
    end

    def ended(task_id)
      @mutex.synchronize do
        @waiters.each_key.select { |waiter| waiter.task_id == task_id }.each do |waiter|
          waiter.ended = true
          waiter.condition.signal
        end
      end
    end

    # The rows of those who don't wait any more go at the same time.
    def renew(protocol)
      task_ids = @mutex.synchronize { @waiters.each_key.map(&:task_id).uniq }
      left = protocol.renew_waiters(@listener.channel, task_ids)
      @mutex.synchronize { @renew_at = left || @waiters.any? ? now + RENEW_SECONDS : nil }
    end

    def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)
  end
end
