# frozen_string_literal: true

RSpec.describe TaskerCore::ApiStepHandler do
  let(:step) { TaskerCore::StepContext.new(contract("start_attempt")["step"]) }

  def client(**options) = described_class.new.send(:api, step, **options)

  def raised
    yield
    nil
  rescue StandardError => e
    e
  end

  def outcome_of(answer, &call)
    call ||= ->(server) { client.get(server.url("/charges?token=abc")) }
    HttpServer.run(->(_request) { answer }) { |server| raised { return call.call(server) } }
  end

  JSON.parse(File.read(File.join(Contract::FOLDER, "http_outcomes.json"))).each do |row|
    it "takes #{row['status']} #{row['headers']} for #{row['outcome']}" do
      outcome = outcome_of([row["status"], row.fetch("headers", {}), row["status"] == 204 ? "" : "some text"])

      case row["outcome"]
      when "result" then expect(outcome.status).to eq(row["status"])
      when "retryable" then expect(outcome).to be_a(TaskerCore::RetryableError).and have_attributes(retry_after: row["retry_after"])
      else expect(outcome).to be_a(TaskerCore::PermanentError).and have_attributes(error_code: row["code"])
      end
    end
  end

  it "knows outcomes of each kind" do
    expect(contract("http_outcomes").map { |row| row["outcome"] }.uniq).to match_array(%w[result retryable permanent])
  end

  it "sends what it is told, with the step's idempotency key" do
    HttpServer.run(->(_request) { [201, { "Content-Type" => "application/json" }, '{"id": 9007199254740993}'] }) do |server|
      answer = client(headers: { "X-Shop" => "5" }).post(server.url("/charges?a=1"), json: { amount: BigDecimal("12.5"), at: :now }, query: { b: "2 3" })
      request = server.requests.pop(true)

      expect(answer).to have_attributes(status: 201, json: { "id" => 9_007_199_254_740_993 })
      expect(request).to start_with("POST /charges?a=1&b=2+3 HTTP/1.1\r\n").and end_with("\r\n\r\n{\"amount\":\"12.5\",\"at\":\"now\"}")
      expect(request).to match(/^idempotency-key: tasker-5eed00000007-42\r$/i).and match(%r{^content-type: application/json\r$}i).and match(/^x-shop: 5\r$/i)
    end
  end

  describe "a response that the handler returns" do
    def result_of(call, *answer)
      HttpServer.run(->(_request) { answer }) do |server|
        handler = Class.new(described_class) { define_method(:process) { |_task, _sequence, step| instance_exec(server.url("/x"), step, &call) } }
        raised { return handler.new.handle(nil, nil, step) }
      end
    end

    clients = { "the gem's" => ->(url, step) { api(step).get(url) }, "Net::HTTP's" => ->(url, _step) { Net::HTTP.get_response(URI(url)) } }
    clients.each do |whose, call|
      it "is its JSON, or status and body, with #{whose}" do
        expect(result_of(call, 200, {}, '{"id": 5}')).to eq("id" => 5)
        expect(result_of(call, 201, {}, "made")).to eq("status" => 201, "body" => "made")
      end

      it "fails like one that was checked, with #{whose}" do
        expect(result_of(call, 404)).to be_a(TaskerCore::PermanentError).and have_attributes(error_code: "http_404")
        expect(result_of(call, 503)).to be_a(TaskerCore::RetryableError)
      end
    end

    it "is told from what a handler makes itself" do
      outputs = [5, "x", nil, { "status" => 500, "body" => "x" }, Struct.new(:status, :body).new("paid", "x")]
      expect(outputs.map { |output| TaskerCore::HttpOutcome.result_of(output) }).to eq(outputs)
    end
  end

  it "asks for headers alone" do
    answer = outcome_of([200, { "X-Rows" => 5, "Content-Length" => 100 }]) { |server| client.head(server.url) }

    expect(answer).to have_attributes(status: 200, body: "", headers: a_hash_including("x-rows" => "5"))
  end

  it "tells in the failure what helps, and no secret" do
    error = outcome_of([500, { "X-Request-Id" => "r1", "Set-Cookie" => "session=s3cret", "Content-Type" => "text/plain" }, "oh no#{' ' * 300}end"])

    expect(error.message).to match(%r{\AGET http://127.0.0.1:\d+/charges answered 500: oh no})
    expect(error.context).to match("status" => 500, "headers" => { "x-request-id" => "r1", "content-type" => "text/plain" },
                                   "body" => a_string_ending_with("…"), "request" => a_string_ending_with("/charges"))
    expect([error.message, error.context].inspect).not_to match(/s3cret|abc/)
  end

  it "follows no redirect, and says where it led" do
    error = outcome_of([302, { "Location" => "https://elsewhere.example/x?code=s3cret" }])

    expect(error).to be_a(TaskerCore::PermanentError).and have_attributes(error_code: "http_302")
    expect(error.message).to end_with("answered 302 to https://elsewhere.example/x, which is not followed")
  end

  it "sends user and password of a URL as such, and shows them to nobody" do
    HttpServer.run(->(_request) { [401] }) do |server|
      error = raised { client.get(server.url("/x").sub("://", "://me:s3cret@")) }

      expect(server.requests.pop(true)).to match(/^authorization: Basic #{['me:s3cret'].pack('m0')}\r$/i)
      expect(error.message).not_to include("s3cret")
    end
  end

  describe "when the network fails" do
    def expect_retry(error, cause)
      expect(error).to be_a(TaskerCore::RetryableError)
      expect(error.cause).to be_a(cause)
      expect(error.message).to match(%r{\AGET http://127.0.0.1:\d+/.* failed: #{cause}})
    end

    it "tries again after a refused connection" do
      url = HttpServer.run(nil, &:url)

      expect_retry(raised { client.get(url) }, Errno::ECONNREFUSED)
    end

    it "tries again after a connection that ends early" do
      expect_retry(outcome_of("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"), EOFError)
      expect_retry(outcome_of(""), EOFError)
    end

    it "tries again after an answer that is none" do
      expect_retry(outcome_of("SSH-2.0-OpenSSH\r\n\r\n"), Net::HTTPBadResponse)
    end

    it "tries again after the timeout" do
      silent = Queue.new
      HttpServer.run(->(_request) { silent.pop }) { |server| expect_retry(raised { client(timeout: 0.05).get(server.url) }, Net::ReadTimeout) }
    end

    it "doesn't let a body that drips go on for ever" do
      drip = lambda do |socket|
        socket.write("HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n")
        200.times { socket.write("x") && sleep(0.02) }
      end
      expect_retry(outcome_of(drip) { |server| client(timeout: 0.2).get(server.url) }, Net::ReadTimeout)
    end
  end

  it "keeps no more of an answer than it may" do
    error = outcome_of([200, {}, "x" * 101]) { |server| client(max_response: 100).get(server.url) }

    expect(error).to be_a(TaskerCore::ResultTooLargeError)
  end

  it "says what can't be sent" do
    { "ftp://x/y" => "bad_url", "http://" => "bad_url", "http://a b" => "bad_url", nil => "bad_url" }.each do |url, code|
      expect(raised { client.get(url) }).to be_a(TaskerCore::PermanentError).and have_attributes(error_code: code)
    end
    expect(raised { client.post("http://127.0.0.1:1/", json: { a: Object.new }) })
      .to have_attributes(error_code: "bad_request_body", message: /\$\.a is a Object/)
  end

  it "says when an answer is not JSON" do
    answer = outcome_of([200, { "Content-Type" => "text/html" }, "<html>"])

    expect(answer.body).to eq("<html>")
    expect(raised { answer.json }).to have_attributes(error_code: "answer_not_json", message: %r{200, text/html})
  end

  describe "#check_response!" do
    def check(response) = described_class.new.send(:check_response!, response)

    let(:faraday) { Struct.new(:status, :headers, :body) }

    it "takes answers of other clients" do
      good = faraday.new(200, {}, "ok")
      party = Struct.new(:code, :headers, :body).new(429, { "Retry-After" => ["30"] }, nil)

      expect(check(good)).to equal(good)
      expect(raised { check(faraday.new(503, { "retry-after" => "7" }, "busy")) }).to have_attributes(retry_after: "7", message: "the call answered 503: busy")
      expect(raised { check(party) }).to have_attributes(retry_after: "30", message: "the call answered 429")
      expect(raised { check(faraday.new(404, {}, "\xFF".b)) }).to have_attributes(error_code: "http_404", context: a_hash_including("body" => "\u{FFFD}"))
    end

    it "takes Net::HTTP's" do
      HttpServer.run(->(_request) { [503, { "Retry-After" => "7" }] }) do |server|
        expect(raised { check(Net::HTTP.get_response(URI(server.url))) }).to have_attributes(retry_after: "7")
      end
    end

    it "says what is no answer" do
      expect { check("200") }.to raise_error(ArgumentError, "String is no HTTP response: it has neither status nor code")
    end
  end

  it "has the names of the Rails engine" do
    expect(TaskerCore::StepHandler::Api).to equal(described_class)
    expect(TaskerCore::StepHandler::Base).to equal(TaskerCore::BaseStepHandler)
  end

  it "reports what a service answered as the step's failure" do
    HttpServer.run(->(_request) { [429, { "Retry-After" => "7" }, "token=abc"] }) do |server|
      url = server.url
      stub_const("Charge", Class.new(described_class) { define_method(:process) { |_task, _sequence, step| api(step).get(url).json } })
      use_test_database(reraise_errors: false)
      step = dispatch("Charge")
      perform(step)

      expect(step.failure).to include("class" => "TaskerCore::RetryableError", "retry_after" => "7", "permanent" => false)
      expect(step.failure["context"]["body"]).to eq("token=[FILTERED]")
    end
  end
end
