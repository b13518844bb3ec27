# frozen_string_literal: true

require_relative "lib/tasker_core/version"

Gem::Specification.new do |spec|
  spec.name = "tasker_core"
  spec.version = TaskerCore::VERSION
  spec.authors = ["The tasker authors"]
  spec.summary = "Runs the steps of tasker's workflows in Sidekiq"
  spec.description = "Step handlers in Ruby for tasker, a workflow engine on Postgres: the engine orchestrates, " \
                     "your own Sidekiq runs the steps, and a task starts with the transaction that inserts it."
  spec.homepage = "https://github.com/taskerhq/tasker"
  spec.license = "MIT"
  spec.required_ruby_version = ">= 3.1"
  spec.metadata = { "rubygems_mfa_required" => "true", "source_code_uri" => "#{spec.homepage}/tree/main/ruby_bridge" }

  spec.files = Dir["lib/**/*", "sig/**/*.rbs", "README.md", "CHANGELOG.md", "LICENSE"].select { |file| File.file?(file) }

  spec.add_dependency "bigdecimal", ">= 3.0", "< 5" # with Ruby 3.4, not a part of Ruby any more
  spec.add_dependency "connection_pool", ">= 2.2.5", "< 4"
  spec.add_dependency "logger", ">= 1.4", "< 2" # the same with Ruby 4.0
  spec.add_dependency "pg", ">= 1.4", "< 2"
  spec.add_dependency "sidekiq", ">= 6.4", "< 9"
end
