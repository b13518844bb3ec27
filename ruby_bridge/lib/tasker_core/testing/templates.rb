# frozen_string_literal: true

module TaskerCore
  module Testing
    # The templates that enqueue_task finds in inline mode: those of a folder, and
    # those that were added. For the folder see Testing.templates_folder=.
    class Templates
      # @return [Hash{String => String}] what ${NAME} stands for in the folder's templates
      attr_accessor :variables

      def initialize
        @added = []
        @read = {}
        @variables = {}
      end

      # @param source [Hash, String] as for Testing.run_task
      # @return [Template]
      def add(source) = Template.read(source).tap { |template| @added << template }

      # @return [void]
      def clear = @added.clear

      # @return [Template] of the highest version; of two such, the one that was added last
      # @raise [TaskRefusedError] as the engine would
      def find(namespace, name, version = nil)
        named = all.select { |template| template.namespace == namespace && template.name == name }
        found = named.select { |template| version.nil? || template.version == version }
        return found.max_by.with_index { |template, index| [template.version.split(".").map(&:to_i), index] } if found.any?

        raise TaskRefusedError, "template #{namespace}/#{name} has no version #{version}; it has: #{named.map(&:version).join(', ')}" if named.any?

        raise TaskRefusedError, "there is no template #{namespace}/#{name}; in #{Testing.templates_folder} and in " \
                                "TaskerCore::Testing.templates there are: #{all.map { |template| "#{template.namespace}/#{template.name}" }.uniq.join(', ')}"
      end

      private

      def all = Dir[File.join(Testing.templates_folder, "**/*.{yaml,yml}")].map { |file| read(file) } + @added

      def read(file) = @read[[file, File.mtime(file), Testing.environment, variables]] ||= Template.read(file, variables:)
    end
  end
end
