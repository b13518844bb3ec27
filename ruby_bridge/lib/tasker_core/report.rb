# frozen_string_literal: true

require "json"

module TaskerCore
  # The JSON text of one report, as in contract/reports.json.
  module Report
    module_function

    # @param result_json [String] of ResultJson.dump
    # @param secret [Integer, nil] that the call which started the attempt had, here and below
    def success(step_id, attempt, result_json, secret = nil)
      # Up to 4 MiB: not parsed and generated once more.
      %({#{head(step_id, attempt, secret)},"outcome":"success","result":#{result_json}})
    end

    # @param failure [Hash] of FailureRecord#to_h
    def failure(step_id, attempt, failure, secret = nil)
      %({#{head(step_id, attempt, secret)},"outcome":"failure","failure":#{JSON.generate(failure, max_nesting: 0)}})
    end

    def lost(step_id, attempt, secret = nil)
      %({#{head(step_id, attempt, secret)},"outcome":"lost"})
    end

    def head(step_id, attempt, secret)
      %("step_id":#{step_id},"attempt":#{attempt}#{",\"secret\":#{secret}" if secret})
    end
    private_class_method :head
  end
end
