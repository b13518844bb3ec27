# frozen_string_literal: true

require_relative "eventually"
require "redis"
require "socket"

# A Redis server of an example's own, which may be gone for a while.
class OwnRedis
  include Eventually

  def self.run
    redis = new
    redis.start
    yield redis
  ensure
    redis&.kill
  end

  def initialize
    @port = TCPServer.open("127.0.0.1", 0) { |server| server.addr[1] }
  end

  def url = "redis://127.0.0.1:#{@port}/0"

  # With nothing in it.
  def start
    @pid = spawn("redis-server", "--port", @port.to_s, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", out: File::NULL, err: File::NULL)
    eventually("redis answers") { answers? }
  end

  def kill
    return unless @pid

    Process.kill("KILL", @pid)
    Process.wait(@pid)
    @pid = nil
  end

  private

  def answers?
    Redis.new(url:).ping == "PONG"
  rescue Redis::BaseError
    false
  end
end
