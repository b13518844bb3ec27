# frozen_string_literal: true

unless defined?(ActiveRecord::Base)
  raise TaskerCore::ConfigurationError, "TaskerCore::Task, Step, TaskEvent and TaskTemplate are ActiveRecord models: load active_record first"
end

module TaskerCore
  # What the models of tasker's tables inherit from. They read: the engine alone
  # writes, and what may be asked of it are methods such as Task#cancel!, each a
  # call of the SQL function that the command line calls as well.
  #
  # They use the connection of ActiveRecord::Base, and so its transaction, if
  # that is connected to tasker's database; else one of their own, to what
  # config.connects_to or config.database_url names.
  class Record < ActiveRecord::Base
    self.abstract_class = true

    class << self
      # @private
      # @return [Hash, nil] nil: tasker's database is that of ActiveRecord::Base
      def own_database(url = TaskerCore.config.database_url || ENV.fetch("TASKER_DATABASE_URL", nil))
        return if url.nil? || url.empty?

        there = DatabaseParameters.from_url(url)
        return if place(there) == place(DatabaseParameters.active_record_settings ? DatabaseParameters.from_active_record : {})

        there.except(:user, :dbname).merge(adapter: "postgresql", username: there[:user], database: there[:dbname]).compact
      end

      private

      def place(parameters) = [parameters[:host].to_s, (parameters[:port] || 5432).to_i, parameters[:dbname].to_s]
    end

    if TaskerCore.config.connects_to
      connects_to(**TaskerCore.config.connects_to)
    elsif (settings = own_database)
      establish_connection(settings)
    end

    ActiveSupport.run_load_hooks(:tasker_record, self)

    # @return [true]
    def readonly? = true

    # ActiveRecord's two that don't ask readonly?.
    # @raise [ActiveRecord::ReadOnlyRecord]
    def delete = raise(ActiveRecord::ReadOnlyRecord, "#{self.class} is read-only")

    # @raise [ActiveRecord::ReadOnlyRecord]
    def update_columns(*) = delete

    private

    # Calls a function of the engine's that takes the record's id first.
    #
    # @raise [StateTransitionError] it can't be done in the state that it is in
    # @raise [ValidationError] what came along is refused
    def steer(function, types, *values)
      list = types.each_with_index.map { |type, index| "$#{index + 2}::#{type}" }
      self.class.transaction(requires_new: true) do # a refusal leaves the caller's transaction usable
        # Not its value: ActiveRecord has no type for void.
        sql = "SELECT 1 FROM tasker.#{function}(#{['$1::bigint', *list].join(', ')})"
        leased { |connection| ActiveRecordDatabase.new(connection).exec(sql, [id, *values]) }
      end
      reload
    rescue ActiveRecord::StatementInvalid => e
      raise ErrorMapping.translate(e) || e
    end

    # From Rails 7.2 an app may disallow that a thread keeps its connection.
    def leased(&) = self.class.respond_to?(:with_connection) ? self.class.with_connection(&) : yield(self.class.connection)

    def json(value) = value.nil? ? nil : JSON.generate(JsonTree.build(value), max_nesting: 0)
  end
end
