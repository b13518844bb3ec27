# frozen_string_literal: true

module TaskerCore
  # What an answer means for the step, whichever client it comes from: 2xx is a
  # result; 429 and 503 come again after what they ask for (Retry-After), other
  # 5xx after the step's backoff; everything else is final, with the code
  # http_404 and the like. The engine's own handler tasker.http decides alike.
  #
  # A redirect is final, too: a POST must not be made elsewhere than where the
  # handler sent it, nor its headers given to another host.
  class HttpOutcome
    BODY_CHARACTERS = 200
    # Headers that help people, and hold no secret.
    HEADERS = /\A(retry-after|content-type|date|location|(x-)?(request|correlation|trace)-id|(x-)?rate-?limit.*)\z/

    # @param response [Object] of Net::HTTP, Faraday, HTTP.rb, HTTParty, …: has +status+ or
    #   +code+, +headers+ or +each_header+, and +body+
    # @param request [String, nil] such as "POST https://api.example/charges", for the message
    def initialize(response, request = nil)
      @response = response
      @request = request
    end

    # @return [Object] the response, when it is a result
    # @raise [RetryableError, PermanentError]
    def check!
      return @response if status.between?(200, 299)
      raise RetryableError.new(message, retry_after: headers["retry-after"], context:) if [429, 503].include?(status)
      raise RetryableError.new(message, context:) if status >= 500

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
