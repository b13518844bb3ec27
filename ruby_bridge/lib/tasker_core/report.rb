# frozen_string_literal: true

require "json"

module TaskerCore
  # The JSON text of one report, as in contract/reports.json.
  module Report
    module_function

    # @param result_json [String] of ResultJson.dump
    def success(step_id, attempt, result_json)
      # Up to 4 MiB: not parsed and generated once more.
      %({"step_id":#{step_id},"attempt":#{attempt},"outcome":"success","result":#{result_json}})
    end

    # @param failure [Hash] of FailureRecord#to_h
    def failure(step_id, attempt, failure)
      JSON.generate({ "step_id" => step_id, "attempt" => attempt, "outcome" => "failure", "failure" => failure }, max_nesting: 0)
    end

    # @param call_id [Integer, nil] lost only if this call has started it
    def lost(step_id, attempt, call_id = nil)
      %({"step_id":#{step_id},"attempt":#{attempt},"outcome":"lost"#{",\"call_id\":#{call_id}" if call_id}})
    end
  end
end
