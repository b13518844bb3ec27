# frozen_string_literal: true

require "erb"
require "yaml"

module TaskerCore
  # Looks for what keeps an app's steps from running, before they don't: what
  # `rails tasker:check` reports. Reads only.
  class AppCheck
    # The number of the newest migration that this gem relies on.
    NEEDED_MIGRATION = 54

    # @!attribute ok [Boolean]
    # @!attribute text [String] what was found, and what to do about it
    Finding = Struct.new(:ok, :text)

    # A step of a template that runs in Ruby, and where that is said.
    RubyStep = Struct.new(:source, :step, :handler_class, :queue)
    private_constant :RubyStep

    # Steps of the newest versions, and of those whose tasks still run.
    REGISTERED = <<~SQL
      SELECT t.namespace || '/' || t.name || '@' || t.version AS source, s.name AS step, s.handler_class, s.queue
      FROM tasker.template_steps s JOIN tasker.task_templates t USING (template_id)
      WHERE s.handler_class IS NOT NULL
        AND (t.template_id IN (SELECT DISTINCT ON (namespace, name) template_id FROM tasker.task_templates ORDER BY namespace, name, version_key DESC)
             OR t.template_id IN (SELECT template_id FROM tasker.tasks WHERE state IN ('pending', 'in_progress')))
      ORDER BY t.template_id, s.position
    SQL
    private_constant :REGISTERED

    # @param root [String, Pathname] of the app
    # @param environment [String] overlay of the templates, and section of config/sidekiq.yml
    # @param database [#exec]
    def initialize(root:, environment:, database: TaskerCore.database)
      @root = root.to_s
      @environment = environment.to_s
      @database = database
    end

    # @return [Array<Finding>]
    def call
      @findings = []
      database = schema
      live = redis
      steps = [*in_files, *(database ? registered : [])]
      handlers(steps)
      queues(steps, live)
      @findings
    end

    private

    def fine(text) = @findings << Finding.new(true, text)
    def wrong(text) = @findings << Finding.new(false, text)

    # @return [Boolean] whether there is something to read
    def schema
      there = @database.exec("SELECT max(version) AS version FROM tasker.schema_migrations").first["version"].to_i
      if there < NEEDED_MIGRATION
        wrong "database: its schema has migration #{there}, tasker_core #{VERSION} needs #{NEEDED_MIGRATION}: tasker migrate up"
      else
        fine "database: schema tasker at migration #{there}"
      end
      true
    rescue DatabaseError, ConfigurationError => e
      wrong "database: #{e.message}"
      false
    end

    # @return [Array<String>] the queues that running Sidekiq processes listen to
    def redis
      Sidekiq.redis(&:ping)
      require "sidekiq/api"
      Sidekiq::ProcessSet.new(false).flat_map { |process| process["queues"] }.uniq.tap do |queues|
        fine "Redis: it answers; Sidekiq processes listen to #{queues.empty? ? 'nothing: none is running' : queues.join(', ')}"
      end
    rescue StandardError => e
      wrong "Redis: #{e.message}: start it, or correct REDIS_URL"
      []
    end

    def in_files
      files = Dir[File.join(@root, "config/tasker/tasks/**/*.{yaml,yml}")]
      files.flat_map { |file| steps_of(file) }.tap { fine "templates: #{files.size} in config/tasker/tasks" }
    end

    def steps_of(file)
      name = file.delete_prefix("#{@root}/")
      template = YAML.safe_load_file(file, aliases: true)
      overlay = (template.dig("environments", @environment, "step_templates") || []).to_h { |step| [step["name"], step] }
      template.fetch("step_templates").filter_map do |step|
        over = overlay.fetch(step["name"], {})
        handler_class = over.key?("handler") ? nil : over["handler_class"] || step["handler_class"]
        RubyStep.new(name, step["name"], handler_class, over["queue"] || step["queue"] || "default") if handler_class
      end
    rescue StandardError => e
      wrong "#{name} can't be read (#{e.class}: #{e.message.lines.first&.strip}): tasker template validate config/tasker/tasks says where"
      []
    end

    def registered = @database.exec(REGISTERED).map { |row| RubyStep.new(*row.values_at("source", "step", "handler_class", "queue")) }

    def handlers(steps)
      steps.group_by(&:handler_class).each do |name, uses|
        handler = HandlerLookup.find(name)
      rescue HandlerNotFoundError => e
        wrong "#{places(uses)}: #{e.message}"
      rescue StandardError, ScriptError => e
        wrong "#{places(uses)}: #{name} can't be loaded: #{e.class}: #{e.message.lines.first&.strip}"
      else
        fine "handler #{name}"
        own_queue(name, handler, uses)
      end
    end

    # What a handler says of its queue, the engine doesn't know.
    def own_queue(name, handler, uses)
      meant = handler.queue if handler.respond_to?(:queue)
      elsewhere = meant ? uses.reject { |use| use.queue == meant } : []
      elsewhere.group_by(&:queue).each do |queue, there|
        wrong "#{places(there)}: #{name} is meant for the queue #{meant}, and its jobs go to #{queue}: " \
              "say queue: #{meant} in the template, or queue #{queue.inspect} in the handler"
      end
    end

    def queues(steps, live)
      listened = configured_queues or return
      steps.group_by(&:queue).each do |queue, uses|
        next fine("queue #{queue}") if listened.include?(queue) || live.include?(queue)

        wrong "#{places(uses)}: nobody listens to the queue #{queue}: add it under :queues: in config/sidekiq.yml, " \
              "or start a Sidekiq with -q #{queue}"
      end
    end

    # As Sidekiq reads them: the section of the environment goes over the rest.
    def configured_queues
      file = File.join(@root, "config/sidekiq.yml")
      return ["default"] unless File.exist?(file)

      settings = YAML.safe_load(ERB.new(File.read(file)).result, permitted_classes: [Symbol], aliases: true) || {}
      settings = settings.transform_keys(&:to_s)
      settings.merge!((settings[@environment] || {}).transform_keys(&:to_s))
      capsules = (settings["capsules"] || {}).each_value.map { |capsule| capsule.transform_keys(&:to_s)["queues"] }
      # A queue is a name, or a name with its weight.
      names = [settings["queues"], *capsules].compact.flatten(1).map { |queue| Array(queue).first.to_s.split(",").first }
      names.empty? ? ["default"] : names
    rescue StandardError, ScriptError => e
      wrong "config/sidekiq.yml can't be read: #{e.message.lines.first&.strip}"
      nil
    end

    def places(uses) = uses.map { |use| "#{use.source} (#{use.step})" }.uniq.join(", ")
  end
end
