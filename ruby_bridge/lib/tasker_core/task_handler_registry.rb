# frozen_string_literal: true

module TaskerCore
  # Which class makes the tasks of which template. One per process: `new` is
  # `instance`.
  #
  #   registry = TaskerCore::TaskHandlerRegistry.new
  #   found = registry.find_handler_for_task_request({ namespace: "shop", name: "fulfil_order" })
  #   handler = found["ruby_class_name"].constantize.new(found["yaml_template"])
  #
  # It knows the templates in files, read when somebody first asks (in Rails:
  # config/tasker/tasks, elsewhere those of #load_templates), and what was
  # registered by hand. It keeps names of classes, never classes: Rails reloads
  # them. For any thread.
  class TaskHandlerRegistry
    DEFAULT_HANDLER = "TaskerCore::BaseTaskHandler"
    RAILS_FOLDER = "config/tasker/tasks/**/*.{yaml,yml}"

    # A template and its handler.
    Entry = Struct.new(:namespace, :name, :version, :ruby_class_name, :yaml_template, :source, keyword_init: true) do
      def key = [namespace, name, version]

      def label = "#{namespace}/#{name}@#{version}"

      def sorts_by = version.split(".").map(&:to_i)

      # @return [Hash{String => Object}]
      def answer = { "found" => true, "namespace" => namespace, "name" => name, "version" => version, "ruby_class_name" => ruby_class_name }
    end

    def initialize
      @monitor = Monitor.new
      clear!
    end

    # Adds the templates in files. They are read when somebody first asks.
    #
    # @param patterns [Array<String, Pathname>] such as "config/tasker/tasks/**/*.yaml"; in Rails, relative to its root
    # @return [void]
    def load_templates(*patterns)
      @monitor.synchronize do
        @patterns |= patterns.map(&:to_s)
        @files = nil
      end
      nil
    end

    # @param name [String] of the template
    # @param namespace_name [String]
    # @param version [String] MAJOR.MINOR.PATCH
    # @param ruby_class_name [String, Class, nil] a BaseTaskHandler; nil: what the template says, else BaseTaskHandler itself
    # @param yaml_template [String, Pathname, Hash, nil] text, path or content of the template
    # @param replace [Boolean] whether another class may have been registered before
    # @return [void]
    # @raise [ConfigurationError] something of it can't be, or another class is registered
    def register(name:, namespace_name: "default", version: "0.1.0", ruby_class_name: nil, yaml_template: nil, replace: false)
      template = content(yaml_template)
      template = TemplateFile.parse({ **template, "name" => name.to_s, "namespace_name" => namespace_name.to_s, "version" => version.to_s })
      entry = entry_of(template, "register", class_name(ruby_class_name))
      @monitor.synchronize do
        known = @registered[entry.key]
        if known && known.ruby_class_name != entry.ruby_class_name && !replace
          raise ConfigurationError, "#{entry.label} has the handler #{known.ruby_class_name} already, not #{entry.ruby_class_name}; " \
                                    "say replace: true to change it"
        end

        @registered[entry.key] = entry
      end
      nil
    end
    alias register_handler register

    # @param task_request [TaskRequest, Hash{String, Symbol => Object}] with name, and namespace ("default") and version
    #   (the latest) where they matter
    # @param database [Boolean] whether to look among the templates registered in Postgres as well
    # @param attributes [Hash] the request, when it comes without braces
    # @return [Hash{String => Object}] found (true), namespace, name, version, ruby_class_name and yaml_template
    #   (a Hash with the keys of the YAML, frozen); or found (false), namespace, name, version and error
    # @raise [ConfigurationError] a template file can't be read
    # @raise [ValidationError] the request has no name
    def find_handler_for_task_request(task_request = nil, database: false, **attributes)
      request = TaskRequest.from(task_request || attributes)
      entry = find(request) || (stored(request) if database)
      return { **entry.answer, "yaml_template" => entry.yaml_template } if entry

      { "found" => false, "namespace" => request.namespace, "name" => request.name, "version" => request.version,
        "error" => not_found(request, database) }
    end

    # The handler itself, made.
    #
    # @param (see #find_handler_for_task_request)
    # @return [BaseTaskHandler]
    # @raise [HandlerNotFoundError] there is none, or its class is missing or no task handler
    # @raise (see #find_handler_for_task_request)
    def handler_for(task_request = nil, database: false, **attributes)
      found = find_handler_for_task_request(task_request, database:, **attributes)
      raise HandlerNotFoundError, found["error"] unless found["found"]

      task_handler(found["ruby_class_name"]).new(found["yaml_template"])
    end

    # @param namespace [String, nil] nil: of all
    # @return [Array<Hash{String => Object}>] namespace, name, version and ruby_class_name, sorted
    def list_handlers(namespace: nil)
      listed = entries.values.sort_by { |entry| [entry.namespace, entry.name, entry.sorts_by] }
      listed.select { |entry| namespace.nil? || entry.namespace == namespace.to_s }.map { |entry| entry.answer.except("found") }
    end

    # @param name [String]
    # @param namespace_name [String]
    # @param version [String, nil] nil: any
    # @return [Boolean]
    def registered?(name, namespace_name: "default", version: nil)
      !find(TaskRequest.new(name:, namespace: namespace_name, version:)).nil?
    end

    # Forgets what the files said: they are read again. Rails' reloading calls it.
    #
    # @return [void]
    def reload!
      @monitor.synchronize { @files = nil }
    end

    # Forgets everything.
    #
    # @return [void]
    def clear!
      @monitor.synchronize do
        @registered = {}
        @patterns = []
        @files = nil
      end
    end

    private

    # What was registered by hand comes before what a file says.
    def entries
      @monitor.synchronize { (@files ||= read_files).merge(@registered) }
    end

    def find(request)
      of_name = entries.values.select { |entry| entry.namespace == request.namespace && entry.name == request.name }
      request.version ? of_name.find { |entry| entry.version == request.version } : of_name.max_by(&:sorts_by)
    end

    def stored(request)
      version, definition = WorkflowQueries.new.template(request.namespace, request.name, request.version)
      return unless version

      definition = { "namespace_name" => request.namespace, "name" => request.name, "version" => version, **definition }
      entry_of(TemplateFile.parse(definition, "template #{request.name} in the database"), "database", nil)
    end

    def read_files
      files = patterns.flat_map { |pattern| Dir.glob(File.expand_path(pattern, root)) }.uniq.sort
      files.each_with_object({}) do |file, read|
        entry = entry_of(TemplateFile.read(file), file, nil)
        raise ConfigurationError, "#{entry.label} is in two files: #{read[entry.key].source} and #{file}" if read.key?(entry.key)

        read[entry.key] = entry
      end
    end

    def patterns = @patterns.empty? && rails_root ? [RAILS_FOLDER] : @patterns

    def root = rails_root || Dir.pwd

    def rails_root = (Rails.root&.to_s if defined?(Rails) && Rails.respond_to?(:root))

    def entry_of(template, source, class_name)
      Entry.new(namespace: template.fetch("namespace_name", "default"), name: template["name"], version: template.fetch("version", "0.1.0"),
                ruby_class_name: class_name || template["task_handler_class"] || DEFAULT_HANDLER, yaml_template: template, source:).freeze
    end

    def content(template)
      case template
      when nil then {}
      when Hash then template.transform_keys(&:to_s)
      else template.to_s.include?("\n") ? TemplateFile.parse(template.to_s) : TemplateFile.read(template.to_s)
      end
    end

    def class_name(handler)
      name = handler.is_a?(Module) ? handler.name : handler
      return name if handler.nil? || (name.is_a?(String) && TemplateFile::CLASS_NAME.match?(name))

      raise ConfigurationError, "a handler is a class with a name, or its name, such as \"Orders::Fulfil\", not #{handler.inspect}"
    end

    def task_handler(name)
      handler = Object.const_get(name)
      return handler if handler.is_a?(Class) && handler <= BaseTaskHandler

      raise HandlerNotFoundError, "#{name} is not a task handler: let it inherit from #{DEFAULT_HANDLER}, or correct task_handler_class in the template"
    rescue NameError => e
      raise if e.is_a?(NoMethodError) || !name.split("::").include?(e.name.to_s)

      raise HandlerNotFoundError, "no class #{name} in this process: define it, or correct task_handler_class in the template"
    end

    def not_found(request, database)
      versions = entries.values.select { |entry| entry.namespace == request.namespace && entry.name == request.name }
      if versions.any?
        return "#{request.namespace}/#{request.name} has no version #{request.version}; it has #{versions.sort_by(&:sorts_by).map(&:version).join(', ')}"
      end

      known = entries.values.map { |entry| "#{entry.namespace}/#{entry.name}" }
      known |= WorkflowQueries.new.template_names if database
      "there is no template #{request.namespace}/#{request.name} #{database ? 'in files or in the database' : 'among those registered here'}" \
        "#{NearNames.hint("#{request.namespace}/#{request.name}", known)}"
    end

    @instance = new

    class << self
      # @return [TaskHandlerRegistry] the process's own
      attr_reader :instance
      alias new instance
    end
  end
end
