# frozen_string_literal: true

require "json"

module TaskerCore
  # What an answer means for the step, whichever client it comes from: 2xx is a
  # result; 5xx and what is PASSING come again, after what they ask for (Retry-After) or
  # the step's backoff; everything else is final, with the code http_404 and the like.
  # The engine's own handler tasker.http decides alike.
  #
  # A redirect is final, too: a POST must not be made elsewhere than where the
  # handler sent it, nor its headers given to another host.
  class HttpOutcome
    BODY_CHARACTERS = 200
    # Answers of the 4xx that the same call may not get again: too slow, a conflict (as with a
    # first call under the same idempotency key that is still under way), locked, too early,
    # too many. RFC 9110, 4918, 8470 and 6585.
    PASSING = [408, 409, 423, 425, 429].freeze
    # Headers that help people, and hold no secret.
    HEADERS = /\A(retry-after|content-type|date|location|(x-)?(request|correlation|trace)-id|(x-)?rate-?limit.*)\z/

    # @param response [Object] of Net::HTTP, Faraday, HTTP.rb, HTTParty, …: has +status+ or
    #   +code+, +headers+ or +each_header+, and +body+
    # @param request [String, nil] such as "POST https://api.example/charges", for the message
    def initialize(response, request = nil)
      @response = response
      @request = request
    end

    # @param output [Object] what a handler returned
    # @return [Object] of a response the JSON of its body, or status and body; anything else as it is
    # @raise [RetryableError, PermanentError] the response is no result
    def self.result_of(output)
      outcome = new(output)
      return output unless outcome.response?

      outcome.check!
      outcome.result
    end

    # @return [Boolean] whether it is a response of an HTTP client, and no Hash or Struct that looks a little like one
    def response? = !status_method.nil? && @response.respond_to?(:body) && (@response.respond_to?(:headers) || @response.respond_to?(:each_header))

    # @return [Object]
    def result
      return @response.body if @response.body.is_a?(Hash) || @response.body.is_a?(Array) # a client that reads JSON itself

      JSON.parse(body, max_nesting: false)
    rescue JSON::ParserError
      { "status" => status, "body" => body }
    end

    # @return [Object] the response, when it is a result
    # @raise [RetryableError, PermanentError]
    def check!
      return @response if status.between?(200, 299)
      raise RetryableError.new(message, retry_after: headers["retry-after"], context:) if status >= 500 || PASSING.include?(status)

      raise PermanentError.new(message, error_code: "http_#{status}", context:)
    end

    # @return [Integer]
    # @raise [ArgumentError] it is no answer to an HTTP request
    def status
      raise ArgumentError, "#{@response.class} is no HTTP response: it has neither status nor code" unless status_method

      code = @response.public_send(status_method)
      Integer(code.respond_to?(:to_i) ? code.to_i : code)
    end

    private

    def status_method = %i[status code].find { |name| @response.respond_to?(name) }

    def headers
      @headers ||= pairs.to_h { |name, value| [name.to_s.downcase.tr("_", "-"), Array(value).join(", ")] }
    end

    def pairs
      return @response.each_header if @response.respond_to?(:each_header) # Net::HTTP
      return @response.headers.to_h if @response.respond_to?(:headers)

      {}
    end

    def context
      { "status" => status, "headers" => headers.select { |name, _| HEADERS.match?(name) }, "body" => excerpt, "request" => @request }.compact
    end

    def message
      text = "#{@request || 'the call'} answered #{status}"
      text += " to #{headers['location'].sub(/\?.*/m, '')}, which is not followed" if status.between?(300, 399) && headers["location"]
      excerpt.empty? ? text : "#{text}: #{excerpt}"
    end

    def excerpt = @excerpt ||= CleanText.call(CleanText.call(body, limit: 10_000).strip, limit: BODY_CHARACTERS)

    def body = @response.respond_to?(:body) ? @response.body.to_s : ""
  end
end
