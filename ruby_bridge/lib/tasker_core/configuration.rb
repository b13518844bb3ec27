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
    # @return [Boolean, Symbol] whether an error of a handler is raised again,
    #   for error trackers: true, false, or :final, when no attempt follows.
    #   Sidekiq doesn't retry it.
    attr_accessor :reraise_errors
    # @return [Numeric] how long to go on reporting while Postgres is away
    attr_accessor :report_timeout
    # @return [Numeric] how long to go on asking for an attempt while Postgres is away
    attr_accessor :start_timeout
    # @return [Numeric] how long a process that stops goes on reporting; what is
    #   left then runs again elsewhere
    attr_accessor :stop_timeout
    # @return [Array<String, Symbol, Regexp, Proc>] as in Rails, whose own
    #   config.filter_parameters is always added: parts of names whose values
    #   are masked in what is kept of a failure
    attr_accessor :filter_parameters
    # @return [Array<String, Class>] errors that no further attempt mends,
    #   whichever handler they come from; see ErrorRules
    attr_accessor :permanent_errors
    # @return [Boolean] whether subscribers of events run in the Sidekiq process
    attr_accessor :events_in_sidekiq
    # @return [Hash, nil] what connects_to of ActiveRecord takes, for the models Task, Step, …; nil: as database_url says
    attr_accessor :connects_to
    attr_writer :logger

    # @return [Array<Symbol>] names of all settings
    def self.settings = @settings ||= public_instance_methods.grep(/[a-z]=\z/).map { |name| name.name.delete_suffix("=").to_sym }.sort.freeze

    def initialize
      super
      @filter_parameters = SecretFilter::DEFAULTS
      @permanent_errors = []
      @pool_size = 5
      @reraise_errors = :final
      @report_timeout = 300
      @start_timeout = 30
      @stop_timeout = 10
      @events_in_sidekiq = false
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

        near = NearNames.near(name, self.class.settings).first
        raise ConfigurationError, "#{called}.#{name} is no setting#{"; did you mean #{near}?" if near} – there are: #{self.class.settings.join(', ')}"
      end
    end

    # @raise [ConfigurationError] naming the first setting that can't be
    def validate!
      super
      sized = pool_size.is_a?(Integer) && pool_size.positive?
      raise ConfigurationError, "pool_size must be a positive Integer, not #{pool_size.inspect}" unless sized

      unless [true, false, :final].include?(reraise_errors)
        raise ConfigurationError, "reraise_errors must be true, false or :final, not #{reraise_errors.inspect}"
      end

      { report_timeout:, start_timeout:, stop_timeout: }.each do |name, seconds|
        next if seconds.is_a?(Numeric) && seconds >= 0

        raise ConfigurationError, "#{name} must be a number of seconds, not #{seconds.inspect}"
      end
      ErrorRules.names(permanent_errors)
      secret_filter
    end

    # @private
    def secret_filter
      rails = defined?(Rails) && Rails.respond_to?(:application) && Rails.application
      SecretFilter.new(Array(filter_parameters) + (rails ? rails.config.filter_parameters : []))
    end

    # @private
    # @param final [Boolean] whether no attempt follows
    def reraise?(final:) = reraise_errors == :final ? final : reraise_errors

    private

    def default_logger
      return Sidekiq.logger if Sidekiq.server?

      (Rails.logger if defined?(Rails) && Rails.respond_to?(:logger)) || ::Logger.new($stderr, progname: "tasker_core")
    end
  end
end
