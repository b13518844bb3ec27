# frozen_string_literal: true

missing = %w[TASKER_TEST_DATABASE_URL TASKER_TEST_REDIS_URL TASKER_BIN].select { |name| ENV.fetch(name, "").empty? }
unless missing.empty?
  warn "The specs run against real servers. Missing in the environment: #{missing.join(', ')}.\n" \
       "`make test` in the root of the repository starts the servers and sets them:\n" \
       "  TASKER_TEST_DATABASE_URL  a superuser's URL of a running Postgres; each run makes a database of its own\n" \
       "  TASKER_TEST_REDIS_URL     a running Redis with --databases 1024\n" \
       "  TASKER_BIN                the tasker program, which migrates the database"
  exit!(1) # RSpec would say it all again
end

require_relative "support/coverage" # before what it measures

require "json"
require "logger"
require "stringio"
require "tasker_core"

Dir[File.join(__dir__, "support", "*.rb")].each { |file| require file }

RSpec.configure do |config|
  config.expect_with(:rspec) { |expectations| expectations.syntax = :expect }
  config.disable_monkey_patching!
  config.warnings = false # those of the installed gems would drown ours
  config.example_status_persistence_file_path = nil

  config.include Eventually
  config.include Contract
  config.include TestConfiguration
  config.include WorkflowHelpers

  # What a spec leaves behind would be the next one's: the clock that it set ahead, the tasks that it recorded.
  config.before { TaskerCore::Testing.clear if defined?(TaskerCore::Testing.clear) }

  config.after(:suite) { TestDatabase.drop }
end
