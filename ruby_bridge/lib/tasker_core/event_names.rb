# frozen_string_literal: true

require "did_you_mean"

module TaskerCore
  # What events are called, and what a subscription's patterns stand for.
  #
  # Two events have a second, shorter name, for what they mean to an app. A
  # subscriber meets an event under the short name when its patterns match that
  # one, and under the name in tasker.events otherwise: so the name always fits
  # what was subscribed to.
  module EventNames
    # Of the engine, as in events.go.
    CATALOGUE = %w[
      task.initialize_requested task.start_requested task.completed task.failed task.cancelled task.resolved_manually
      task.retry_requested task.paused task.resumed task.run_now task.priority_changed task.context_replaced task.stale
      task.dead_lettered task.dead_letter_acknowledged
      step.execution_requested step.handle step.completed step.retry_requested step.failed step.cancelled step.skipped
      step.resolved_manually step.initialize_requested step.run_now step.report_refused
      gate.limited gate.paused gate.resumed
      workflow.task_reenqueue_delayed workflow.webhook_set workflow.webhook_removed
    ].freeze
    ALIASES = { "task.enqueue" => "task.initialize_requested", "task.reenqueue" => "workflow.task_reenqueue_delayed" }.freeze
    # First words of names that only the engine gives.
    RESERVED = %w[task step workflow gate].freeze

    NAME = /\A[a-z][a-z0-9_]*(\.[a-z0-9_]+)+\z/
    PATTERN = /\A(\*|[a-z0-9_]+(\.[a-z0-9_]+)*(\.\*)?)\z/

    module_function

    # @param pattern [String] such as "task.completed", "task.*" or "*"
    # @return [String]
    # @raise [ConfigurationError] when no event will ever match
    def check_pattern(pattern)
      raise ConfigurationError, "#{pattern.inspect} is not the name of an event: like step.completed, task.* or *" unless PATTERN.match?(pattern)
      return pattern if !reserved?(pattern) || (CATALOGUE + ALIASES.keys).any? { |name| match?(pattern, name) }

      guess = NearNames.near(pattern, CATALOGUE + ALIASES.keys).first
      raise ConfigurationError, "there is no event #{pattern}#{": did you mean #{guess}?" if guess} docs/events.md lists all"
    end

    # @param name [String] of an event of the app's own
    # @return [String]
    # @raise [EventRefusedError]
    def check_own(name)
      name = name.to_s
      raise EventRefusedError, "the name of an event is like order.fulfilled (a-z, 0-9, _ and at least one dot), not #{name.inspect}" unless NAME.match?(name)
      return name unless reserved?(name)

      raise EventRefusedError, "event #{name}: names that begin with #{RESERVED.map { |word| "#{word}." }.join(', ')} are the engine's; " \
                               "name it after what happened in your domain, such as order.fulfilled"
    end

    # @param pattern [String]
    # @param name [String] of an event
    # @return [Boolean]
    def match?(pattern, name)
      return true if pattern == "*"

      pattern.end_with?(".*") ? name.start_with?(pattern.delete_suffix("*")) : name == pattern
    end

    # @param patterns [Array<String>]
    # @return [Hash{String => String}] of the names in tasker.events that are delivered under another
    def renamed(patterns)
      ALIASES.filter_map { |short, name| [name, short] if patterns.any? { |pattern| match?(pattern, short) } }.to_h
    end

    # @param patterns [Array<String>]
    # @return [Array<String>] the same without short names: for Postgres
    def in_catalogue(patterns)
      ((patterns - ALIASES.keys) + renamed(patterns).keys.reject { |name| patterns.any? { |pattern| match?(pattern, name) } }).uniq
    end

    # @return [String] of a method, without its prefix
    def method_suffix(name) = name.tr(".", "_")

    # @param name [String] of an event, or a pattern
    # @return [Boolean] whether only the engine gives such names
    def reserved?(name) = RESERVED.include?(name.split(".", 2).first)
  end
end
