# frozen_string_literal: true

# Waits for a condition, and fails with a message when it doesn't come true.
module Eventually
  DEADLINE_SECONDS = 20

  def eventually(what, within: DEADLINE_SECONDS)
    deadline = Process.clock_gettime(Process::CLOCK_MONOTONIC) + within
    loop do
      value = yield
      return value if value

      raise "#{what}: not within #{within} s" if Process.clock_gettime(Process::CLOCK_MONOTONIC) > deadline

      sleep 0.01
    end
  end
end
