# frozen_string_literal: true

require_relative "worker_process"
require_relative "sidekiq_queues"
require_relative "stored_run"

module TaskerCore
  module Testing
    # A whole system for a test: a real Postgres with the schema, a Redis, a
    # `tasker worker` that this starts, and this process in Sidekiq's place. Steps
    # run when the test drains, here: stubs work, and coverage is counted.
    #
    #   TaskerCore::Testing::System.open(travel: true) do |system|
    #     task_id = order.pay!                  # enqueues a task, in a transaction that commits
    #     run = system.drain(task_id)           # until the task ends, or waits for time to pass
    #     system.travel(5.minutes)
    #     expect(system.drain(task_id)).to be_complete
    #   end
    #
    # The worker sees what was committed: no transaction around the test.
    class System
      # What is held for a reason that only time, or a person, ends.
      STANDS = %w[backoff scheduled paused gate_paused limited no_handler_alive].freeze
      MOVES = %w[ready running enqueued no_process_alive at_limit no_worker_alive].freeze
      # Seconds. Shorter delays are waited for.
      SHORT_DELAY = 1
      # Seconds to wait for a job before looking whether the task has ended.
      LOOK_EVERY = 0.05
      MOVING = <<~SQL
        SELECT count(*) FROM tasker.tasks t
        WHERE t.state IN ('pending', 'in_progress') AND ($1::bigint IS NULL OR t.task_id = $1)
          AND (SELECT bool_or(held.moves) OR NOT bool_or(held.stands) FROM (
            SELECT s.reason = ANY ($2) OR s.reason = 'backoff' AND s.seconds_until_retry < $4::float8
                   -- At a limit on attempts, others end; at one on a rate, time has to pass.
                   OR s.reason = 'limited' AND EXISTS (SELECT FROM tasker.gates g WHERE g.scope = s.gate_scope AND g.name = s.gate_name
                      AND coalesce(tasker.gate_tokens(g) + g.per_second * $4::float8 >= 1, true)) AS moves,
                   s.reason = ANY ($3) AS stands
            FROM tasker.step_readiness s WHERE s.task_id = t.task_id) held)
      SQL
      EXPLANATION = <<~SQL
        SELECT format('task %s, %s: %s', s.task_id, s.name, s.explanation) AS line
        FROM tasker.step_readiness s JOIN tasker.tasks t USING (task_id)
        WHERE t.state IN ('pending', 'in_progress') AND ($1::bigint IS NULL OR t.task_id = $1) AND s.reason <> 'finished' ORDER BY s.task_id, s.position LIMIT 50
      SQL
      private_constant :STANDS, :MOVES, :MOVING, :EXPLANATION, :SHORT_DELAY, :LOOK_EVERY

      # Starts one, and stops it after the block.
      #
      # @param options of #initialize
      # @yieldparam system [System]
      # @return [Object] what the block returns
      def self.open(**options)
        system = new(**options).start
        yield system
      ensure
        system&.stop
      end

      # @param database_url [String, nil] with the schema (tasker migrate up); nil: that of TaskerCore.config
      # @param redis_url [String, nil] nil: TASKER_REDIS_URL, else REDIS_URL, else a local one
      # @param templates [String, nil] folder that the worker registers; nil: none
      # @param binary [String, nil] the program; nil: TASKER_BINARY, else tasker in the PATH
      # @param environment [String, nil] overlay of the templates
      # @param travel [Boolean] mark the database as one for tests, so that #travel works
      # @param options [Array<String>] more arguments of tasker worker
      def initialize(database_url: nil, redis_url: nil, templates: Testing.templates_folder, binary: nil, environment: Testing.environment,
                     travel: false, options: [])
        raise ConfigurationError, "this is production: nothing for tests" if defined?(Rails) && Rails.respond_to?(:env) && Rails.env.production?

        parameters = DatabaseParameters.current(database_url || TaskerCore.config.database_url)
        @database = Connection.new(-> { parameters })
        redis_url ||= ENV["TASKER_REDIS_URL"] || ENV["REDIS_URL"] || "redis://localhost:6379/0"
        @queues = SidekiqQueues.new(redis_url)
        @travel = travel
        flags = { "--templates" => templates, "--environment" => environment }.compact.flatten
        @worker = WorkerProcess.new(binary, [*flags, *options],
                                    env: { "TASKER_DATABASE_URL" => self.class.conninfo(parameters), "TASKER_REDIS_URL" => redis_url })
      end

      # Returns when the worker takes tasks.
      #
      # @return [self]
      # @raise [SystemError] with the worker's log
      def start(seconds = 30)
        mark_database if @travel
        @worker.start(seconds)
        pid = Process.pid
        at_exit { stop if Process.pid == pid }
        Testing.system = self
        self
      end

      # @return [void]
      def stop
        Testing.system = nil if Testing.system.equal?(self)
        @worker.stop
        @queues.give_back
        @database.close
      end

      # Runs the steps that the worker hands to Sidekiq, here and in this thread, until the task has ended or stands:
      # waits for a retry that is not due within a second, for its run_at, for an operator. What a handler raises is
      # reported as in production, and not raised here, but for assertions.
      #
      # @param task_id [Integer, nil] nil: all tasks; of other tasks steps run too, and are not waited for
      # @param timeout [Numeric] seconds
      # @return [Run, nil] of the task
      # @raise [SystemError] it goes on for longer, or the worker has ended; with what each step waits for
      def drain(task_id = nil, timeout: 30)
        deadline = now + timeout
        wait = 0
        loop do
          payload = @queues.pop(queue_names, wait)
          wait = payload ? 0 : LOOK_EVERY
          next perform(payload) if payload
          break unless moving?(task_id)

          raise SystemError, "the worker has ended:\n#{@worker.log}" unless @worker.alive?
          raise SystemError, "not at rest after #{timeout} s:\n#{explanation(task_id)}" if now > deadline
        end
        task(task_id) if task_id
      end

      # @return [Run] the task as it is in the tables
      # @raise [InputError] there is none
      def task(task_id) = StoredRun.new(@database, task_id).call

      # Lets time pass for all tasks of the database: what is due then begins, or ends, at once.
      #
      # @param seconds [Numeric, ActiveSupport::Duration]
      # @return [void]
      # @raise [DatabaseError] the database isn't marked as one for tests
      # @raise [InputError] below 0
      def travel(seconds)
        span = Clock.seconds(seconds) or raise InputError, "time goes forward only: #{seconds.inspect} is no number of seconds from 0"
        @database.exec("SELECT tasker.travel(make_interval(secs => $1::float8))", [span.to_f])
        nil
      end

      # @return [String] the worker's last lines
      def log = @worker.log

      # What the worker understands of what libpq does.
      # @private
      def self.conninfo(parameters)
        parameters.slice(:host, :hostaddr, :port, :user, :password, :dbname, :sslmode, :sslrootcert, :sslcert, :sslkey)
                  .then { |known| known.except(:hostaddr).merge(host: known[:hostaddr] || known[:host]).compact }
                  .map { |name, value| "#{name}='#{value.to_s.gsub(/['\\]/) { |char| "\\#{char}" }}'" }.join(" ")
      end

      private

      def perform(payload)
        Object.const_get(payload.fetch("class")).new.perform(*payload.fetch("args"))
      rescue DatabaseError, ProtocolError, ConfigurationError
        raise # of the system, not of the step
      rescue *AttemptRun::FAILURES
        nil # reported
      end

      def queue_names
        @database.exec("SELECT DISTINCT queue FROM tasker.template_steps WHERE handler_class IS NOT NULL ORDER BY 1").column_values(0)
      end

      def moving?(task_id)
        list = PG::TextEncoder::Array.new
        @database.exec(MOVING, [task_id, list.encode(MOVES), list.encode(STANDS), SHORT_DELAY]).getvalue(0, 0).to_i.positive?
      end

      def explanation(task_id) = @database.exec(EXPLANATION, [task_id]).column_values(0).join("\n")

      def mark_database
        name = @database.exec("SELECT quote_ident(current_database())").getvalue(0, 0)
        @database.exec("ALTER DATABASE #{name} SET tasker.testing = on")
      end

      def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)
    end
  end
end
