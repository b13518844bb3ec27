# frozen_string_literal: true

namespace :tasker do
  desc "Look for what would keep this app's steps from running"
  task check: :environment do
    require "tasker_core/app_check"
    findings = TaskerCore::AppCheck.new(root: Rails.root, environment: ENV.fetch("TASKER_ENV", Rails.env)).call
    findings.each { |finding| puts "#{finding.ok ? 'ok   ' : 'WRONG'} #{finding.text}" }
    exit 1 unless findings.all?(&:ok)
  end

  desc "Count tasks by template and state"
  task status: :environment do
    counts = TaskerCore.database.exec(<<~SQL)
      SELECT namespace || '/' || name AS template, state, count(*) FROM tasker.tasks GROUP BY 1, 2 ORDER BY 1, 2
    SQL
    puts "no tasks" if counts.ntuples.zero?
    counts.each { |row| puts format("%8<count>s  %-18<state>s %<template>s", row.transform_keys(&:to_sym)) }
  end

  desc "List the registered templates, the newest version first"
  task templates: :environment do
    templates = TaskerCore.database.exec(<<~SQL)
      SELECT t.namespace || '/' || t.name || '@' || t.version AS name, count(s) AS steps, t.description
      FROM tasker.task_templates t LEFT JOIN tasker.template_steps s USING (template_id)
      GROUP BY t.template_id ORDER BY t.namespace, t.name, t.version_key DESC
    SQL
    puts "no templates: tasker template register config/tasker/tasks" if templates.ntuples.zero?
    templates.each { |row| puts "#{row['name']}  #{row['steps']} steps#{"  #{row['description'].lines.first.strip}" if row['description']}" }
  end

  desc "Run this app's event subscribers until the process is told to stop"
  task events: :environment do
    TaskerCore::EventPublisher.run
  end
end
