# frozen_string_literal: true

require "json"
require "net/http"
require "openssl"
require "uri"

module TaskerCore
  # Makes the HTTP calls of one attempt, with Net::HTTP: each within the step's
  # timeout, and with its idempotency key. What goes wrong comes out as the
  # error that says whether another attempt may help.
  class ApiClient
    # Seconds for a step without a timeout.
    TIMEOUT = 60
    CONNECT_TIMEOUT = 10
    # Of a body. What is larger doesn't belong into a workflow; tasker.http has the same limit.
    MAX_RESPONSE = 1 << 20

    # What the network may do to a call.
    NETWORK_ERRORS = [SystemCallError, IOError, SocketError, ::Timeout::Error, OpenSSL::SSL::SSLError, Net::HTTPBadResponse,
                      Net::ProtocolError].freeze

    # An answer.
    class Response < Value
      # @!attribute [r] status
      #   @return [Integer]
      # @!attribute [r] headers
      #   @return [Hash{String => String}] names in small letters
      # @!attribute [r] body
      #   @return [String] in UTF-8 if it can be, else binary
      attributes :status, :headers, :body

      # @return [Object] the body, read as JSON
      # @raise [PermanentError] it is not
      def json
        JSON.parse(body, max_nesting: false)
      rescue JSON::ParserError
        raise PermanentError.new("the answer (#{status}, #{headers['content-type'] || 'no content type'}) is not JSON", error_code: "answer_not_json")
      end
    end

    # @param step [StepContext]
    # @param headers [Hash{String => String}] for each call
    # @param timeout [Numeric, nil] seconds for each call; nil: the step's
    # @param max_response [Integer] bytes of a body
    def initialize(step, headers: {}, timeout: nil, max_response: MAX_RESPONSE)
      @timeout = timeout || step.timeout || TIMEOUT
      @headers = { "Accept" => "application/json, */*;q=0.5", "Accept-Encoding" => "identity", "User-Agent" => "tasker",
                   "Idempotency-Key" => step.idempotency_key, **headers }
      @max_response = max_response
    end

    # @!method get(url, query: nil, headers: {})
    #   @param url [String] http or https
    #   @param query [Hash, nil] added to the URL
    #   @param headers [Hash{String => String}]
    #   @return [Response] of status 2xx
    #   @raise [RetryableError, PermanentError] see HttpOutcome; and what the network did is retryable
    # @!method post(url, json: nil, body: nil, query: nil, headers: {})
    #   @param json [Object, nil] JSON values for the body, as a handler's result may have them
    #   @param body [String, nil] instead of json
    #   @return [Response] of status 2xx
    #   @raise (see #get)
    # @!method put(url, json: nil, body: nil, query: nil, headers: {})
    #   (see #post)
    # @!method patch(url, json: nil, body: nil, query: nil, headers: {})
    #   (see #post)
    # @!method head(url, query: nil, headers: {})
    #   (see #get)
    # @!method delete(url, json: nil, body: nil, query: nil, headers: {})
    #   (see #post)
    %w[get head delete post put patch].each do |verb|
      define_method(verb) { |url, **options| call(verb, url, **options) }
    end

    private

    def call(verb, url, json: nil, body: nil, query: nil, headers: {})
      uri = uri(url, query)
      request = Net::HTTP.const_get(verb.capitalize).new(uri, { **@headers, **headers })
      fill(request, json, body)
      # Without user, password and query, which may hold what nobody must see.
      label = "#{verb.upcase} #{uri.scheme}://#{uri.host}#{":#{uri.port}" unless uri.port == uri.default_port}#{uri.path}"
      HttpOutcome.new(send_request(uri, request, label), label).check!
    end

    def uri(url, query)
      uri = URI.parse(url.to_s)
      unless uri.is_a?(URI::HTTP) && !uri.host.to_s.empty? # "" on Ruby 3.3 and later
        raise PermanentError.new("the URL of a call begins with http:// or https:// and has a host", error_code: "bad_url")
      end

      uri.query = [uri.query, URI.encode_www_form(query)].compact.reject(&:empty?).join("&") if query
      uri.path = "/" if uri.path.empty?
      uri
    rescue URI::InvalidURIError
      raise PermanentError.new("the URL of a call can't be read", error_code: "bad_url")
    end

    def fill(request, json, body)
      request.basic_auth(*[request.uri.user, request.uri.password].map { |part| URI.decode_www_form_component(part.to_s) }) if request.uri.userinfo
      return if json.nil? && body.nil?

      request["Content-Type"] ||= json.nil? ? "application/octet-stream" : "application/json"
      request.body = json.nil? ? body : JSON.generate(JsonTree.build(json), max_nesting: 0)
    rescue JsonTree::Refused => e
      raise PermanentError.new("the body of the call is not JSON: #{e.message}", error_code: "bad_request_body")
    end

    def send_request(uri, request, label)
      http = Net::HTTP.new(uri.host, uri.port)
      http.use_ssl = uri.scheme == "https"
      http.open_timeout = [@timeout, CONNECT_TIMEOUT].min
      http.read_timeout = http.write_timeout = @timeout
      http.max_retries = 0 # of Net::HTTP, which would repeat what is not safe to repeat
      http.start { http.request(request) { |answer| read(answer, request) }.then { |answer| response(answer) } }
    rescue *NETWORK_ERRORS => e
      raise RetryableError.new("#{label} failed: #{e.class}: #{e.message}", context: { "request" => label })
    end

    # Piece by piece, within the timeout as a whole: a body that drips would
    # never let a single read time out.
    def read(answer, request)
      deadline = now + @timeout
      body = +""
      answer.read_body do |piece|
        body << piece
        raise ResultTooLargeError, "the answer has more than #{@max_response} bytes, which are kept at most" if body.bytesize > @max_response
        raise Net::ReadTimeout if now > deadline
      end
      # Net::HTTP takes half an answer for one.
      missing = request.response_body_permitted? && answer.content_length.to_i > body.bytesize
      raise EOFError, "the connection ended after #{body.bytesize} of #{answer.content_length} bytes" if missing

      answer.body = body
    end

    def response(answer)
      body = answer.body.to_s.b.force_encoding(Encoding::UTF_8)
      body.force_encoding(Encoding::BINARY) unless body.valid_encoding?
      Response.new(status: answer.code.to_i, headers: answer.each_header.to_h, body:)
    end

    def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)
  end
end
