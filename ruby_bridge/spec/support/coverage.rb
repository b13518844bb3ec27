# frozen_string_literal: true

# Line and branch coverage of lib, told at the end of a run, where SimpleCov is
# installed. Only this process counts: what runs in the sidekiq and Rails
# processes that specs start is not seen.
begin
  require "simplecov"
rescue LoadError
  nil
else
  # One line for the whole, one for each file that is covered least.
  class CoverageSummary
    LEAST = 5

    def format(result)
      files = result.source_files.sort_by(&:covered_percent)
      branches = result.coverage_statistics.fetch(:branch)
      puts "coverage: #{result.covered_percent.round(1)} % of lines, #{branches.percent.round(1)} % of branches (this process only)"
      files.first(LEAST).each { |file| puts "  #{file.covered_percent.round(1)} % #{file.project_filename.delete_prefix('/')}" }
    end
  end

  SimpleCov.print_error_status = false # RSpec tells of failures
  SimpleCov.start do
    root File.expand_path("../..", __dir__)
    enable_coverage :branch
    add_filter { |file| !file.project_filename.start_with?("/lib/tasker_core") }
    formatter CoverageSummary
    use_merging false
  end
end
