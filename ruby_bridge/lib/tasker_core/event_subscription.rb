# frozen_string_literal: true

module TaskerCore
  # One named subscriber and its handler, in this process. What
  # EventPublisher.subscribe returns.
  class EventSubscription
    STARTS = %i[now beginning].freeze
    ON_ERROR = %i[hold skip].freeze

    # @return [String] of the subscriber, and so of its cursor in Postgres
    attr_reader :name
    # @return [Array<String>]
    attr_reader :patterns
    # @return [Symbol] :now or :beginning
    attr_reader :from
    # @return [Symbol] what follows when the handler has failed so often: :hold or :skip
    attr_reader :on_error
    # @return [Integer] with on_error: :skip, how often an event is tried again
    attr_reader :retries
    # @return [Hash{String => String}] of EventNames.renamed
    attr_reader :renamed

    # @param handler [#call, #check] see EventHandlers
    # @raise [ConfigurationError]
    def initialize(name:, patterns:, handler:, from: :now, on_error: :hold, retries: 5)
      @name = name.to_s
      @patterns = patterns.map { |pattern| EventNames.check_pattern(pattern.to_s) }.freeze
      @handler = handler
      @from = choice(:from, from, STARTS)
      @on_error = choice(:on_error, on_error, ON_ERROR)
      @retries = retries
      counted = retries.is_a?(Integer) && retries >= 0
      raise ConfigurationError, "subscriber #{@name}: retries must be an Integer, 0 or more, not #{retries.inspect}" unless counted
      raise ConfigurationError, "a subscriber's name has 1 to 200 characters, unlike #{name.inspect}" unless @name.strip.length.between?(1, 200)

      @renamed = EventNames.renamed(@patterns).freeze
    end

    # @return [Array<String>] for Postgres
    def catalogue_patterns = EventNames.in_catalogue(patterns)

    # @param event [Event]
    def call(event) = @handler.call(event)

    # @return [void]
    # @raise [ConfigurationError] naming a method that is missing
    def check! = @handler.check!(patterns)

    # @return [Object] the same for two subscriptions by the same code
    def origin = @handler.origin

    # @return [Array] what makes it different from another
    def settings = [name, patterns, @handler, from, on_error, retries]

    # Ends the delivery in this process. The cursor stays: who subscribes under
    # this name again goes on from there, and what happens meanwhile is kept.
    #
    # @param forget [Boolean] drops the cursor in Postgres as well
    # @return [void]
    # @raise [DatabaseError]
    def unsubscribe(forget: false) = EventPublisher.unsubscribe(name, forget:)

    def inspect = "#<#{self.class} #{name}: #{patterns.join(', ')}>"

    private

    def choice(setting, value, choices)
      return value.to_sym if choices.include?(value.respond_to?(:to_sym) ? value.to_sym : value)

      raise ConfigurationError, "subscriber #{@name}: #{setting} must be one of #{choices.map(&:inspect).join(', ')}, not #{value.inspect}"
    end
  end
end
