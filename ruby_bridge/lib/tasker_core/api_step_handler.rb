# frozen_string_literal: true

module TaskerCore
  # A step that calls a service over HTTP. Its answers become results and
  # errors by the rules of HttpOutcome.
  #
  #   class Orders::Charge < TaskerCore::ApiStepHandler
  #     def process(task, _sequence, step)
  #       api(step).post("https://gateway.example/charges", json: { order: task["order_id"] }).json
  #     end
  #   end
  #
  # With a client of the team's own:
  #
  #   response = Faraday.post(url, body, { "Idempotency-Key" => step.idempotency_key })
  #   check_response!(response).body
  #
  # A handler may return the response itself: its result is then the JSON of its body, or
  # status and body where that is none.
  class ApiStepHandler < BaseStepHandler
    # @return [Object] as for BaseStepHandler#process_results
    def process_results(step, output, initial_results) = super(step, HttpOutcome.result_of(output), initial_results)

    private

    # @param step [StepContext] its timeout and its idempotency key go with each call
    # @param options [Hash] those of ApiClient#initialize
    # @return [ApiClient]
    def api(step, **options) = ApiClient.new(step, **options)

    # @param response [Object] see HttpOutcome
    # @return [Object] the response, when it is a result
    # @raise [RetryableError, PermanentError]
    def check_response!(response) = HttpOutcome.new(response).check!
  end

  # The names of Tasker's Rails engine.
  module StepHandler
    Base = BaseStepHandler
    Api = ApiStepHandler
  end
end
