# frozen_string_literal: true

# A configuration of the example's own, with the run's database and a log to look at.
module TestConfiguration
  def log = @log ||= StringIO.new

  def logged = log.string

  def use_test_database(**settings)
    TaskerCore.configure do |config|
      config.database_url = TestDatabase.url
      config.logger = Logger.new(log)
      config.reraise_errors = true # so that an example can't miss one
      settings.each { |name, value| config.public_send(:"#{name}=", value) }
    end
  end

  def self.included(group)
    group.around do |example|
      before = TaskerCore.instance_variable_get(:@config)
      TaskerCore.instance_variable_set(:@config, nil)
      example.run
    ensure
      TaskerCore.instance_variable_get(:@process_registration)&.stop
      TaskerCore.instance_variable_get(:@reports)&.close
      TaskerCore.stop_event_runner(5)
      TaskerCore.instance_variable_get(:@listener)&.stop
      TaskerCore::EventPublisher.instance_variable_set(:@subscriptions, {})
      TaskerCore.instance_variable_get(:@database)&.close
      %i[@process_registration @reports @database @listener @task_ends].each { |name| TaskerCore.instance_variable_set(name, nil) }
      TaskerCore.instance_variable_set(:@config, before)
    end
  end
end
