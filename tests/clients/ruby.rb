# Listens with the libraries of Ruby. It reads a job from each line of standard input, and prints what the library
# gave as JSON, one object on each line.
#
# Without `set` a library is used as its README shows. With it the setting of docs/libraries.md is used.

require 'base64'
require 'eventmachine'
require 'faye/websocket'
require 'json'
require 'net/http'

PAUSE = 0.1
FINAL = [400, 401, 403, 404].freeze
PRINTING = Mutex.new
$stdout.sync = true

class Job
  attr_reader :set

  def initialize(job)
    @number, @url, @cursor, @token, @set = job.values_at('job', 'url', 'after', 'token', 'set')
  end

  def say(**what)
    line = "#{JSON.generate({job: @number, **what})}\n"
    PRINTING.synchronize { $stdout.write(line) }
  end

  def error(text)
    say(type: 'error', text: text.to_s)
  end

  def headers
    @token.empty? ? {} : {'Authorization' => "Bearer #{@token}"}
  end

  def at_cursor
    "#{@url}?after=#{@cursor}"
  end

  def frame(data)
    if data.is_a?(Array)
      bytes = data.pack('C*')
      say(type: 'bytes', data: Base64.strict_encode64(bytes))
      data = bytes.lines.first
    else
      say(type: 'frame', frame: data)
    end
    frame = JSON.parse(data)
    @cursor = frame[frame['type'] == 'message' ? 'id' : 'cursor'] || @cursor
  end

  def faye
    socket = Faye::WebSocket::Client.new(at_cursor, [], headers: headers)
    socket.on(:message) { |event| frame(event.data) }
    socket.on(:error) { |event| error(event.message) }
    socket.on(:close) do |event|
      error("closed #{event.code} #{event.reason}")
      # It reports a refused handshake as 1002, with the status beside.
      is_final = (4000...4100).cover?(event.code) || FINAL.include?(socket.status)
      error("status #{socket.status}") if FINAL.include?(socket.status)
      is_final || !set ? say(type: 'end') : EM.add_timer(PAUSE) { faye }
    end
  end

  def lines
    loop do
      begin
        break if read_lines
      rescue StandardError => problem
        error(problem.inspect)
      end
      break unless set
      sleep PAUSE
    end
    say(type: 'end')
  end

  # True if the request must not be repeated.
  def read_lines
    uri = URI(at_cursor)
    connection = Net::HTTP.new(uri.host, uri.port)
    # Else it repeats a request by itself in the middle of an answer, with the old cursor.
    connection.max_retries = 0 if set
    connection.start do |http|
      http.request(Net::HTTP::Get.new(uri, {**headers, 'Accept' => 'application/x-ndjson'})) do |answer|
        unless answer.is_a?(Net::HTTPOK)
          error("#{answer.code} #{answer.body}")
          return FINAL.include?(answer.code.to_i)
        end
        pending = +''
        answer.read_body do |chunk|
          pending << chunk
          while (line = pending.slice!(/\A.*\n/))
            frame(line.force_encoding('UTF-8'))
          end
        end
      end
    end
    false
  end
end

EM.run do
  Thread.new do
    $stdin.each_line do |line|
      parsed = JSON.parse(line)
      job = Job.new(parsed)
      if parsed['library'] == 'faye-websocket'
        EM.next_tick { job.faye }
      else
        Thread.new { job.lines }
      end
    end
    EM.next_tick { EM.stop }
  end
end
