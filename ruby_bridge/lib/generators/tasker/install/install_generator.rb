# frozen_string_literal: true

require "rails/generators"

module Tasker
  module Generators
    # rails generate tasker:install
    class InstallGenerator < Rails::Generators::Base
      source_root File.join(__dir__, "templates")

      def create_initializer = template("tasker.rb", "config/initializers/tasker.rb")

      def create_template_folder = create_file("config/tasker/tasks/.keep")

      def create_sidekiq_settings
        template("sidekiq.yml", "config/sidekiq.yml") unless File.exist?(File.join(destination_root, "config/sidekiq.yml"))
      end

      # tasker's schema is tasker's to migrate: Rails shall leave it out of its dump.
      def advise
        say <<~TEXT

          Next:
            tasker migrate up                       tasker's schema, in this app's database or another; run it when you deploy
            rails g tasker:task_handler NAME STEP…  a template, its handlers and their specs
            rails tasker:check                      tells what is missing

          #{schema_advice}
        TEXT
      end

      private

      def schema_advice
        if sql_schema?
          <<~TEXT
            This app dumps db/structure.sql. Keep tasker's schema out of it, in config/application.rb:
              ActiveRecord::Tasks::DatabaseTasks.structure_dump_flags = ["--exclude-schema=tasker"]
          TEXT
        else
          <<~TEXT
            db/schema.rb holds the schemas of schema_search_path, which is "public" unless config/database.yml says otherwise:
            leave tasker out of it. If it must be there, config/initializers/tasker.rb shows how to have the dump ignore it.
          TEXT
        end
      end

      def sql_schema?
        return ActiveRecord.schema_format == :sql if defined?(ActiveRecord) && ActiveRecord.respond_to?(:schema_format)

        defined?(ActiveRecord::Base) && ActiveRecord::Base.respond_to?(:schema_format) && ActiveRecord::Base.schema_format == :sql
      end
    end
  end
end
