# frozen_string_literal: true

require "socket"

# A web server that answers each request, read as text, with what the block
# returns: all that goes over the wire, [status, headers, body], or a Proc that
# is given the socket.
class HttpServer
  def self.run(answer)
    server = new(answer)
    yield server
  ensure
    server&.stop
  end

  attr_reader :requests

  def initialize(answer)
    @answer = answer
    @requests = Queue.new
    @server = TCPServer.new("127.0.0.1", 0)
    @thread = Thread.new { loop { serve(@server.accept) } }
    @thread.report_on_exception = false
  end

  def url(path = "/") = "http://127.0.0.1:#{@server.addr[1]}#{path}"

  def stop
    @thread.kill
    @thread.join
    @server.close
  end

  private

  def serve(socket)
    @requests << (request = read(socket))
    answer = @answer.call(request)
    return answer.call(socket) if answer.is_a?(Proc)

    socket.write(answer.is_a?(Array) ? written(*answer) : answer) if answer
  rescue Errno::EPIPE, Errno::ECONNRESET
    nil # the client had enough
  ensure
    socket.close
  end

  def read(socket)
    head = +""
    head << socket.gets until head.end_with?("\r\n\r\n")
    head + socket.read(head[/^content-length: (\d+)/i, 1].to_i)
  end

  def written(status, headers = {}, body = "")
    headers = { "Content-Length" => body.bytesize, **headers } unless [204, 304].include?(status)
    "HTTP/1.1 #{status} Some Words\r\n#{headers.map { |name, value| "#{name}: #{value}\r\n" }.join}Connection: close\r\n\r\n#{body}"
  end
end
