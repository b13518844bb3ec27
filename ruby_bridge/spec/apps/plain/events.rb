# frozen_string_literal: true

require "tasker_core"

# A process that runs subscribers, as rake tasker:events does. It writes the
# ids that it has handled, one a line; after as many as its argument says it
# hangs in the next.
$stdout.sync = true
TaskerCore.logger.level = Logger::WARN
hang_after = ENV["HANG_AFTER"]&.to_i
handled = 0
TaskerCore::EventPublisher.subscribe("shop.*", name: "counter", from: :beginning) do |event|
  sleep if handled == hang_after
  puts event.id
  handled += 1
end
TaskerCore::EventPublisher.run
puts "stopped"
