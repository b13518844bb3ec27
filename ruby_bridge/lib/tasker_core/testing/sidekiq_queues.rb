# frozen_string_literal: true

require "json"

module TaskerCore
  module Testing
    # Takes jobs from Sidekiq's queues. Those that aren't steps are set aside, and
    # given back in the end: they are the app's.
    class SidekiqQueues
      # @param url [String] of Redis
      def initialize(url)
        @url = url
        @aside = []
      end

      # @param names [Array<String>] of queues; the first goes first
      # @param seconds [Numeric] how long to wait for a job; 0: not at all
      # @return [Hash, nil] payload of a step's job
      def pop(names, seconds = 0)
        loop do
          queue, json = take(names.map { |name| "queue:#{name}" }, seconds)
          return unless json

          payload = JSON.parse(json)
          return payload if payload["class"] == StepJob.name

          @aside << [queue, json]
        end
      end

      # @return [void]
      def give_back
        call("RPUSH", *@aside.pop) while @aside.any?
      end

      def close = client.close

      private

      def take(keys, seconds)
        return if keys.empty?
        return wait(keys, seconds) if seconds.positive?

        keys.each { |key| call("RPOP", key).tap { |json| return [key, json] if json } }
        nil
      end

      # Sidekiq brings one of the two: redis until 6, redis-client from 7.
      def client
        @client ||= if defined?(::Redis) then ::Redis.new(url: @url)
                    else
                      require "redis_client"
                      RedisClient.new(url: @url)
                    end
      end

      def wait(keys, seconds)
        return client.brpop(*keys, timeout: seconds) if client.respond_to?(:brpop)

        client.blocking_call(seconds + 5, "BRPOP", *keys, seconds)
      end

      def call(*command) = client.call(*command)
    end
  end
end
