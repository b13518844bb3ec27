# frozen_string_literal: true

require "pg"
require "uri"

module TaskerCore
  # Where the database is: from the configuration, the environment or
  # ActiveRecord, as what PG.connect takes.
  module DatabaseParameters
    # A peer that is gone without a word must be noticed in less than the 10
    # seconds that a process may be silent, or its heartbeat would be stuck on it.
    DEFAULTS = {
      application_name: "tasker_core", connect_timeout: 5, client_encoding: "UTF8",
      keepalives: 1, keepalives_idle: 3, keepalives_interval: 1, keepalives_count: 3, tcp_user_timeout: 6_000
    }.freeze

    # What a session must have, however the role and the database are configured: who reads
    # events must see what commits meanwhile, and no role may plant a function that fits better
    # than Postgres' own.
    OPTIONS = '-c default_transaction_isolation=read\\ committed -c standard_conforming_strings=on -c search_path=pg_catalog,\\ pg_temp'

    module_function

    # @return [Hash{Symbol => Object}]
    # @raise [ConfigurationError]
    def current(url = TaskerCore.config.database_url)
      url ||= %w[TASKER_DATABASE_URL DATABASE_URL].filter_map { |name| ENV.fetch(name, nil) }.find { |value| !value.empty? }
      parameters = DEFAULTS.merge(url ? from_url(url) : from_active_record)
      parameters.merge(options: [parameters[:options], OPTIONS].compact.join(" "))
    end

    # A DATABASE_URL written for Rails may hold what only ActiveRecord
    # understands (?pool=10, postgis://): libpq would refuse it.
    def from_url(url)
      location, query = url.sub(/\Apostgis:/, "postgres:").split("?", 2)
      known = URI.decode_www_form(query.to_s).select { |name, _| libpq_keywords.include?(name.to_sym) }
      location += "?#{URI.encode_www_form(known).gsub('+', '%20')}" if known.any?
      PG::Connection.conninfo_parse(location).to_h { |option| [option[:keyword].to_sym, option[:val]] }.compact
    rescue PG::Error, ArgumentError => e
      # Never the URL itself: it holds the password.
      raise ConfigurationError, "the database URL can't be read (#{e.message.lines.first.to_s.strip.gsub(/".*"/, '"…"')}); " \
                                "it looks like postgres://user:password@host:5432/name"
    end

    def from_active_record
      settings = active_record_settings
      if settings.nil?
        raise ConfigurationError, "no database: set TaskerCore.config.database_url, TASKER_DATABASE_URL or " \
                                  "DATABASE_URL, or load ActiveRecord with a PostgreSQL database"
      end

      return from_url(settings[:url]) if settings[:url]

      { user: settings[:username], dbname: settings[:database] }.compact.merge(settings.slice(*libpq_keywords))
    end

    def active_record_settings
      return unless defined?(ActiveRecord::Base)

      settings = ActiveRecord::Base.connection_db_config.configuration_hash.transform_keys(&:to_sym).compact
      settings if %w[postgresql postgis].include?(settings[:adapter].to_s)
    rescue ActiveRecord::ActiveRecordError
      nil # loaded, but connected to nothing
    end

    def libpq_keywords = @libpq_keywords ||= PG::Connection.conndefaults_hash.keys
  end
end
