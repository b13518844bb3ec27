# frozen_string_literal: true

module TaskerCore
  # A registered version of a template, as tasker.task_templates has it.
  class TaskTemplate < Record
    self.table_name = "tasker.task_templates"
    self.primary_key = "template_id"

    has_many :tasks, class_name: "TaskerCore::Task", foreign_key: "template_id", inverse_of: :template

    # @return [ActiveRecord::Relation] the newest version of each template, by name
    def self.latest = select("DISTINCT ON (namespace, name) *").order(:namespace, :name, version_key: :desc)

    # @return [String] such as "shop/fulfil_order@1.0.0"
    def full_name = "#{namespace}/#{name}@#{version}"
  end
end
