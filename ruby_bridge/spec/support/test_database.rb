# frozen_string_literal: true

require "open3"
require "securerandom"
require "uri"

# A migrated database of this run's own.
module TestDatabase
  module_function

  def url
    @url ||= create
  end

  # For looking at what the code under test has done.
  def connection
    @connection ||= PG.connect(url)
  end

  def value(sql, *values) = connection.exec_params(sql, values).getvalue(0, 0)

  def row(sql, *values) = connection.exec_params(sql, values).first

  # Backends of the code under test, in this process and others.
  def gem_backends
    connection.exec("SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'tasker_core'").column_values(0)
  end

  def gem_waits_for_lock?
    connection.exec("SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'tasker_core' " \
                    "AND wait_event_type = 'Lock'").ntuples.positive?
  end

  def terminate_gem = gem_backends.each { |pid| value("SELECT pg_terminate_backend($1)", pid) }

  def drop
    return unless @url

    @connection&.close
    on_server { |server| server.exec("DROP DATABASE #{@name} WITH (FORCE)") }
  end

  # Another one, for examples that need all of it to themselves.
  #
  # @yieldparam url [String]
  def separate
    name = "tasker_core_spec_#{SecureRandom.hex(6)}"
    yield migrated(name)
  ensure
    on_server { |server| server.exec("DROP DATABASE IF EXISTS #{name} WITH (FORCE)") }
  end

  def create
    @name = "tasker_core_spec_#{SecureRandom.hex(6)}"
    url = migrated(@name)
    # Ids that the fixtures of the contract don't use.
    PG.connect(url) do |connection|
      connection.exec("ALTER TABLE tasker.tasks ALTER task_id RESTART 1000; ALTER TABLE tasker.steps ALTER step_id RESTART 10000")
    end
    url
  end

  def migrated(name)
    on_server { |server| server.exec("CREATE DATABASE #{name}") }
    url = URI(ENV.fetch("TASKER_TEST_DATABASE_URL")).tap { |uri| uri.path = "/#{name}" }.to_s
    output, status = Open3.capture2e({ "TASKER_DATABASE_URL" => url }, ENV.fetch("TASKER_BIN"), "migrate", "up")
    abort "#{ENV.fetch('TASKER_BIN')} migrate up failed:\n#{output}" unless status.success?
    url
  end

  def on_server
    server = PG.connect(ENV.fetch("TASKER_TEST_DATABASE_URL"))
    yield server
  ensure
    server&.close
  end
end
