# frozen_string_literal: true

require_relative "eventually"

# spec/apps/plain/events.rb in a process of its own.
class EventsProcess
  include Eventually

  def self.run(**env)
    process = new(env)
    yield process
  ensure
    process&.kill
  end

  def initialize(env)
    @reader, writer = IO.pipe
    @pid = spawn({ "RUBYLIB" => SidekiqProcess::LIB, "TASKER_DATABASE_URL" => TestDatabase.url, **env.transform_keys(&:to_s) },
                 RbConfig.ruby, File.join(SidekiqProcess::APPS, "plain/events.rb"), out: writer)
    writer.close
    @lines = []
  end

  # @return [Array<String>] what it has written until now
  def lines
    while (text = @reader.read_nonblock(1 << 16, exception: false)).is_a?(String)
      @rest = "#{@rest}#{text}"
      *whole, @rest = @rest.split("\n", -1)
      @lines.concat(whole)
    end
    @lines
  end

  def ids = lines.grep(/\A\d+\z/).map(&:to_i)

  def wait_for(count) = eventually("#{count} events are handled") { ids.size >= count }

  def term
    Process.kill("TERM", @pid)
    Process.wait(@pid)
    @pid = nil
  end

  def kill
    return unless @pid

    Process.kill("KILL", @pid)
    Process.wait(@pid)
    @pid = nil
  end
end
