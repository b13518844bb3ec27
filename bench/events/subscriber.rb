# frozen_string_literal: true

# The subscriber of this benchmark: writes the id of each event that it has
# handled, eight bytes. With SYNC at once, so that a kill -9 hides nothing;
# without, a hundred at a time, so that the writing isn't what is measured.
require "tasker_core"

TaskerCore.logger.level = Logger::WARN
$stdout.binmode
enough = ENV["SYNC"] ? 8 : 800
handled = String.new(capacity: enough)
TaskerCore::EventPublisher.subscribe("step.*", name: ENV.fetch("NAME"), from: :beginning) do |event|
  handled << [event.id].pack("q")
  if handled.bytesize >= enough
    $stdout.syswrite(handled)
    handled.clear
  end
end
TaskerCore::EventPublisher.run
