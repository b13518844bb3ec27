# frozen_string_literal: true

require "date"
require "yaml"

module TaskerCore
  # Reads what a template's YAML says about itself. Whether the template is
  # sound, `tasker template validate` says: it is the engine that runs it.
  module TemplateFile
    VERSION = /\A\d{1,9}\.\d{1,9}\.\d{1,9}\z/
    CLASS_NAME = /\A[A-Z]\w*(::[A-Z]\w*)*\z/

    module_function

    # @param path [String]
    # @return [Hash{String => Object}] frozen, all the way down
    # @raise [ConfigurationError] naming the file, and the line where it has one
    def read(path) = parse(File.read(path, encoding: "UTF-8"), path)

    # @param template [String, Hash] YAML, or what it holds
    # @param source [String] for messages
    # @return [Hash{String => Object}] frozen, all the way down
    # @raise [ConfigurationError]
    def parse(template, source = "the template")
      tree = template.is_a?(Hash) ? template : YAML.safe_load(template, permitted_classes: [Date, Time, Symbol], aliases: true, filename: source)
      raise ConfigurationError, "#{source}: a template is a mapping with a name and step_templates, not #{tree.class}" unless tree.is_a?(Hash)

      tree = Marshal.load(Marshal.dump(tree)).transform_keys(&:to_s)
      check(tree, source)
      DeepFreeze.call(tree)
    rescue Psych::Exception => e
      raise ConfigurationError, "#{source}: #{e.message.sub("(#{source}): ", '')}"
    end

    def check(tree, source)
      name, namespace, version, handler = tree.values_at("name", "namespace_name", "version", "task_handler_class")
      raise ConfigurationError, "#{source}: the template has no name; add name: and a name" unless name.is_a?(String) && !name.empty?
      raise ConfigurationError, "#{source}: namespace_name must be text, not #{namespace.inspect}" unless namespace.nil? || namespace.is_a?(String)

      unless version.nil? || VERSION.match?(version.to_s)
        raise ConfigurationError, "#{source}: version must be MAJOR.MINOR.PATCH, as 1.2.0, not #{version.inspect}"
      end
      return if handler.nil? || (handler.is_a?(String) && CLASS_NAME.match?(handler))

      raise ConfigurationError, "#{source}: task_handler_class must be the full name of a Ruby class, as Orders::Fulfil, not #{handler.inspect}"
    end
  end
end
