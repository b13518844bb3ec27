# frozen_string_literal: true

# Each line shows a setting's default. docs/rails.md of tasker explains them.
Rails.application.configure do
  # Where tasker's schema is. nil: TASKER_DATABASE_URL, else DATABASE_URL, else this app's database.
  # config.tasker.database_url = nil

  # Connections that the steps of one process share for starting and reporting.
  # config.tasker.pool_size = 5

  # Raise an error of a handler again, for error trackers that listen to Sidekiq: true, false, or :final, when no attempt follows.
  # config.tasker.reraise_errors = :final

  # Seconds to go on starting and reporting an attempt while Postgres is away.
  # config.tasker.start_timeout = 30
  # config.tasker.report_timeout = 300

  # Seconds that a process which stops goes on reporting; what is left then runs again elsewhere.
  # config.tasker.stop_timeout = 10

  # Errors that no further attempt mends, whichever handler they come from: ["ActiveRecord::RecordInvalid"]
  # config.tasker.permanent_errors = []

  # Names whose values are masked in what is kept of a failure, beside those of Rails' filter_parameters.
  # config.tasker.filter_parameters = TaskerCore::SecretFilter::DEFAULTS

  # Run subscribers of events in the Sidekiq process, not in `rails tasker:events`.
  # config.tasker.events_in_sidekiq = false

  # Another logger than Sidekiq's or Rails's.
  # config.tasker.logger = nil

  # Values of these CurrentAttributes travel with a task, and are there around each of its handlers.
  # config.tasker.current_attributes = ["Current"]; with some attributes only: { "Current" => [:user] }
  # config.tasker.current_attributes = []

  # Secrets of at least 32 bytes that sign these values: the first signs, all verify. nil: one that comes of secret_key_base.
  # config.tasker.headers_keys = nil

  # Serializers of ActiveJob, beside those of symbols, times and numbers, that may write and read these values.
  # config.tasker.headers_serializers = []

  # Called around each handler, the first outermost: ->(task, step, &run) { run.call }
  # config.tasker.middleware = []

  # Told of errors that fail a step for good, as Rails.error is: ->(error, context) { … }
  # config.tasker.on_error = []

  # Tell on_error and Rails.error also of errors after which the step is tried again.
  # config.tasker.report_retried_errors = false

  # Tag what handlers write to Rails.logger with task and step.
  # config.tasker.log_tags = true

  # Let handler_class name job classes of this app's that were not written for tasker; or: ["InvoiceJob"]
  # config.tasker.adopt_jobs = true

  # Classes whose records {record: …} may find in any template: ["Order"]
  # config.tasker.record_classes = []

  # Runs handlers outside of Sidekiq. nil: this app's reloader.
  # config.tasker.executor = nil

  # Another database for the models TaskerCore::Task, Step, …: { database: { writing: :tasker, reading: :tasker } }
  # config.tasker.connects_to = nil
end

# Only if schema_search_path names the schema tasker, which `tasker migrate up` looks after, not Rails:
# ActiveRecord::SchemaDumper.ignore_tables |= [/\Atasker\./, /\Ariver_/]
