# frozen_string_literal: true

require "io/wait"

module TaskerCore
  module Testing
    # The program `tasker worker` as a child of this process.
    class WorkerProcess
      READY = "worker takes tasks"
      LINES = 200 # of its log are kept
      private_constant :READY, :LINES

      # @param binary [String, nil] nil: TASKER_BINARY, else tasker in the PATH
      # @param options [Array<String>] more of them, see tasker worker --help
      # @param env [Hash{String => String}] URLs go here: arguments are seen by everybody
      def initialize(binary, options, env:)
        @command = [self.class.find(binary), "worker", "--log-format", "json", *options]
        @env = env
        @log = []
        @mutex = Mutex.new
      end

      # @return [String] path
      # @raise [ConfigurationError]
      def self.find(binary = nil)
        binary ||= ENV["TASKER_BINARY"].then { |path| path unless path.to_s.empty? }
        candidates = binary ? [binary] : ENV.fetch("PATH", "").split(File::PATH_SEPARATOR).map { |folder| File.join(folder, "tasker") }
        candidates.find { |path| File.file?(path) && File.executable?(path) } or
          raise ConfigurationError, "#{binary ? "there is no program #{binary}" : 'there is no program tasker in the PATH'}: " \
                                    "set TASKER_BINARY to where tasker is, such as bin/tasker after make build"
      end

      # Returns when it takes tasks.
      #
      # @param seconds [Numeric] how long that may take
      # @raise [SystemError] with its log
      def start(seconds)
        @output, writer = IO.pipe
        @pid = spawn(@env, *@command, in: :close, %i[out err] => writer)
        writer.close
        @waiter = Process.detach(@pid)
        await_ready(now + seconds)
        @reader = Thread.new { keep(@output.gets) until @output.eof? }
        self
      rescue SystemError
        stop
        raise
      end

      # @return [Boolean]
      def alive? = @waiter&.alive? || false

      # @return [String] the last lines
      def log = @mutex.synchronize { @log.join }

      # Ends it politely; after the given seconds it is killed.
      # @return [void]
      def stop(seconds = 30)
        return unless @waiter

        %w[TERM KILL].each do |signal|
          Process.kill(signal, @pid) if alive?
          break if @waiter.join(seconds)
        end
        @reader&.join
        @output.close
        @waiter = nil
      rescue Errno::ESRCH
        nil # it ended by itself
      end

      private

      def await_ready(deadline)
        loop do
          raise SystemError, "the worker takes no tasks yet:\n#{log}" unless @output.wait_readable([deadline - now, 0].max)

          line = @output.gets or raise SystemError, "the worker ended (#{@waiter.value}):\n#{log}"
          keep(line)
          return if line.include?(READY)
        end
      end

      def keep(line) = @mutex.synchronize { @log = [*@log, line].last(LINES) }

      def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)
    end
  end
end
