# frozen_string_literal: true

require "redis"
require "uri"

Redis.silence_deprecations = true if Redis.respond_to?(:silence_deprecations=)

# Redis databases, taken in turn from a counter that all test processes share.
module TestRedis
  IN_USE = 1000

  module_function

  # @return [String] URL of an empty database
  def take
    server = URI(ENV.fetch("TASKER_TEST_REDIS_URL"))
    number = ((Redis.new(url: server.tap { |uri| uri.path = "/0" }.to_s).incr("tasker:test:db") - 1) % IN_USE) + 1
    server.tap { |uri| uri.path = "/#{number}" }.to_s.tap { |url| Redis.new(url:).flushdb }
  end
end
