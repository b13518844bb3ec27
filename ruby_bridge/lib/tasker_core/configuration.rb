# frozen_string_literal: true

require "logger"

module TaskerCore
  # What a team may set. All durations are seconds.
  #
  #   TaskerCore.configure do |config|
  #     config.database_url = "postgres://localhost/tasker"
  #   end
  class Configuration
    include HandlerSettings

    # @return [String, nil] where tasker's schema is; nil: TASKER_DATABASE_URL,
    #   else DATABASE_URL, else ActiveRecord's own database
    attr_accessor :database_url
    # @return [Integer] connections that the running jobs share; each job needs
    #   one for two short calls
    attr_accessor :pool_size
    # @return [Boolean] whether an error of a handler is raised again once it
    #   has been reported, for error trackers. Sidekiq doesn't retry it.
    attr_accessor :reraise_errors
    # @return [Numeric] how long to go on reporting while Postgres is away
    attr_accessor :report_timeout
    # @return [Numeric] how long to go on asking for an attempt while Postgres is away
    attr_accessor :start_timeout
    # @return [Hash, nil] what connects_to of ActiveRecord takes, for the models Task, Step, …; nil: as database_url says
    attr_accessor :connects_to
    attr_writer :logger

    # @return [Array<Symbol>] names of all settings
    def self.settings = @settings ||= public_instance_methods.grep(/[a-z]=\z/).map { |name| name.name.delete_suffix("=").to_sym }.sort.freeze

    def initialize
      super
      @pool_size = 5
      @reraise_errors = true
      @report_timeout = 300
      @start_timeout = 30
    end

    # @return [Logger] Sidekiq's in a Sidekiq process, else that of Rails, else one on standard error
    def logger
      @logger ||= default_logger
    end

    # @param settings [Hash{Symbol => Object}]
    # @param called [String] for errors: where they were set
    # @return [void]
    # @raise [ConfigurationError] naming the first that there is not
    def update(settings, called: "TaskerCore.config")
      settings.each do |name, value|
        next public_send(:"#{name}=", value) if self.class.settings.include?(name.to_sym)

        near = DidYouMean::SpellChecker.new(dictionary: self.class.settings).correct(name).first if defined?(DidYouMean::SpellChecker)
        raise ConfigurationError, "#{called}.#{name} is no setting#{"; did you mean #{near}?" if near} – there are: #{self.class.settings.join(', ')}"
      end
    end

    # @raise [ConfigurationError] naming the first setting that can't be
    def validate!
      super
      sized = pool_size.is_a?(Integer) && pool_size.positive?
      raise ConfigurationError, "pool_size must be a positive Integer, not #{pool_size.inspect}" unless sized

      { report_timeout:, start_timeout: }.each do |name, seconds|
        next if seconds.is_a?(Numeric) && seconds >= 0

        raise ConfigurationError, "#{name} must be a number of seconds, not #{seconds.inspect}"
      end
    end

    private

    def default_logger
      return Sidekiq.logger if Sidekiq.server?

      (Rails.logger if defined?(Rails) && Rails.respond_to?(:logger)) || Logger.new($stderr, progname: "tasker_core")
    end
  end
end
