# frozen_string_literal: true

# The life of two tasks, phase by phase, as an app sees it. It prints what
# transcript.txt holds.

require_relative "handlers"

TaskerCore.logger.level = Logger::WARN
$stdout.sync = true

def phase(title) = puts(title)

def say(text) = puts("  #{text}")

phase "1. Discovery & registration"
registry = TaskerCore::TaskHandlerRegistry.new # the process's own, whoever asks
registry.load_templates(File.join(__dir__, "templates/*.yaml")) # in Rails: config/tasker/tasks, by itself
task_request = { namespace: "travel", name: "book_trip", context: { city: "Lisbon", card: "valid" } }
result = registry.find_handler_for_task_request(task_request)
handler = result["ruby_class_name"].constantize.new(result["yaml_template"])
say "#{result['namespace']}/#{result['name']}@#{result['version']} is made by #{handler.class}"

phase "2. Task initialization"
trip = ActiveRecord::Base.transaction { handler.initialize_task(task_request) } # the task starts if and only if this commits
say "task #{trip.task_id}: #{trip.step_count} steps, #{trip.step_mapping.keys.join(', ')}"
begin
  handler.initialize_task(task_request.merge(context: { city: "Atlantis", card: "valid" }))
rescue TaskerCore::ValidationError => e
  say "refused: #{e.message}"
end
begin
  handler.initialize_task(task_request.merge(context: { city: "Lisbon" }))
rescue TaskerCore::TaskRefusedError => e
  say "refused: #{e.message}"
end

phase "3. Task execution"
result = handler.handle(trip.task_id) # asks for a run, and returns
say "handle(#{trip.task_id}) returns a #{result.class.name.demodulize} of #{result.total_steps} steps, finished: #{result.finished?}"
result = TaskerCore::WorkflowCoordinator.new.wait(trip.task_id, timeout: 60) # woken by the end, not polling

phase "4. Concurrent steps"
plan, flight, hotel, charge = %w[plan flight hotel charge].map { |name| result.step(name) }
say "flight and hotel began after plan: #{[flight, hotel].all? { |step| step.started_at >= plan.finished_at }}"
say "flight and hotel ran side by side: #{[flight, hotel].map(&:started_at).max < [flight, hotel].map(&:finished_at).min}"
say "charge began after both: #{charge.started_at >= [flight, hotel].map(&:finished_at).max}"

phase "5. Finalization & backoff"
say "charge failed once: #{charge.exception.message}"
say "charge is #{charge.state}, attempt #{charge.attempts}, 3 s later or more: #{charge.started_at - [flight, hotel].map(&:finished_at).max >= 3}"
say "task #{trip.task_id} is #{result.state}: #{result.result_of('confirm')['text']}"
declined = handler.initialize_task(task_request.merge(context: { city: "Oslo", card: "expired" }))
result = handler.handle(declined.task_id, wait: true)
say "task #{declined.task_id} ends in #{result.state}: #{result.steps.map { |step| "#{step.name} #{step.state}" }.join(', ')}"
say "no attempt can help: #{result.step('charge').exception.inspect}"

phase "6. Events"
over = Queue.new
TaskerCore::EventPublisher.subscribe(from: :beginning) do |event| # without from: what happens from now on
  case event.name
  when "task.enqueue"   then say "task #{event.data['task_id']} is enqueued"
  when "task.reenqueue" then say "task #{event.data['task_id']} goes on in #{event.data['delay'].ceil} s"
  when "trip.booked"    then say "a trip to #{event.data['city']} is booked"
  when "task.completed" then say "task #{event.data['task_id']} is complete"
  when "task.failed"
    say "task #{event.data['task_id']} has failed: #{event.data['message']}"
    over << true
  end
end
TaskerCore::EventPublisher.start
over.pop
TaskerCore::EventPublisher.stop
