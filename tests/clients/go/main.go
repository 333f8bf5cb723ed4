// Listens with the libraries of Go. It reads a job from each line of standard input, and prints what the library
// gave as JSON, one object on each line.
//
// Without Set a library is used as its README shows. With it the setting of docs/libraries.md is used.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	coder "github.com/coder/websocket"
	gorilla "github.com/gorilla/websocket"
	r3labs "github.com/r3labs/sse/v2"
	"github.com/tmaxmax/go-sse"
	"gopkg.in/cenkalti/backoff.v1"
)

const (
	pause = 100 * time.Millisecond
	// Longer than every message.
	limit = 2 << 20
)

var (
	final    = []int{400, 401, 403, 404}
	printing sync.Mutex
)

type job struct {
	Job     int
	Library string
	Url     string
	After   string
	Token   string
	Set     bool
}

// Libraries that do not come back by themselves. Each returns true if the server has refused the request.
var looped = map[string]func(*job) bool{
	"coder/websocket":   (*job).coder,
	"gorilla/websocket": (*job).gorilla,
	"bufio.Scanner":     (*job).scanner,
	"json.Decoder":      (*job).decoder,
	"r3labs/sse":        (*job).r3labs,
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var next job
		if err := json.Unmarshal(lines.Bytes(), &next); err != nil {
			panic(err)
		}
		go next.run()
	}
}

func (j *job) run() {
	defer j.say(map[string]any{"type": "end"})
	if j.Library == "tmaxmax/go-sse" {
		j.tmaxmax()
		return
	}
	for {
		if looped[j.Library](j) || !j.Set {
			return
		}
		time.Sleep(pause)
	}
}

func (j *job) say(what map[string]any) {
	what["job"] = j.Job
	line, _ := json.Marshal(what)
	printing.Lock()
	defer printing.Unlock()
	os.Stdout.Write(append(line, '\n'))
}

func (j *job) error(err any) { j.say(map[string]any{"type": "error", "text": fmt.Sprint(err)}) }

func (j *job) sse(id, event, data string) {
	j.After = id
	j.say(map[string]any{"type": "sse", "id": id, "event": event, "data": data})
}

func (j *job) frame(isText bool, data []byte) {
	if isText {
		j.say(map[string]any{"type": "frame", "frame": string(data)})
	} else {
		j.say(map[string]any{"type": "bytes", "data": data})
		data, _, _ = bytes.Cut(data, []byte("\n"))
	}
	var frame struct{ Type, Id, Cursor string }
	if err := json.Unmarshal(data, &frame); err != nil {
		j.error(err)
		return
	}
	if frame.Type == "message" {
		frame.Cursor = frame.Id
	}
	if frame.Cursor != "" {
		j.After = frame.Cursor
	}
}

func (j *job) atCursor() string { return j.Url + "?after=" + j.After }

func (j *job) headers() http.Header {
	headers := http.Header{}
	if j.Token != "" {
		headers.Set("Authorization", "Bearer "+j.Token)
	}
	return headers
}

// True if the request must not be repeated.
func (j *job) isRefused(answer *http.Response, err error) bool {
	if answer == nil {
		j.error(err)
		return false
	}
	var body []byte
	if answer.Body != nil {
		body, _ = io.ReadAll(answer.Body)
	}
	j.error(fmt.Sprintf("%v %d %s", err, answer.StatusCode, body))
	return slices.Contains(final, answer.StatusCode)
}

func (j *job) coder() bool {
	ctx := context.Background()
	socket, answer, err := coder.Dial(ctx, j.atCursor(), &coder.DialOptions{HTTPHeader: j.headers()})
	if err != nil {
		return j.isRefused(answer, err)
	}
	defer socket.CloseNow()
	if j.Set {
		socket.SetReadLimit(limit)
	}
	for {
		kind, data, err := socket.Read(ctx)
		if err != nil {
			j.error(err)
			code := coder.CloseStatus(err)
			return code >= 4000 && code < 4100
		}
		j.frame(kind == coder.MessageText, data)
	}
}

func (j *job) gorilla() bool {
	socket, answer, err := gorilla.DefaultDialer.Dial(j.atCursor(), j.headers())
	if err != nil {
		return j.isRefused(answer, err)
	}
	defer socket.Close()
	for {
		kind, data, err := socket.ReadMessage()
		if err != nil {
			j.error(err)
			var end *gorilla.CloseError
			return errors.As(err, &end) && end.Code >= 4000 && end.Code < 4100
		}
		j.frame(kind == gorilla.TextMessage, data)
	}
}

// NDJSON. It returns nil if the request has failed.
func (j *job) lines() (*http.Response, bool) {
	request, _ := http.NewRequest("GET", j.atCursor(), nil)
	request.Header = j.headers()
	request.Header.Set("Accept", "application/x-ndjson")
	answer, err := http.DefaultClient.Do(request)
	if err != nil || answer.StatusCode != 200 {
		return nil, j.isRefused(answer, err)
	}
	return answer, false
}

func (j *job) scanner() bool {
	answer, isRefused := j.lines()
	if answer == nil {
		return isRefused
	}
	defer answer.Body.Close()
	lines := bufio.NewScanner(answer.Body)
	if j.Set {
		lines.Buffer(nil, limit)
	}
	for lines.Scan() {
		j.frame(true, lines.Bytes())
	}
	j.error(lines.Err())
	return false
}

func (j *job) decoder() bool {
	answer, isRefused := j.lines()
	if answer == nil {
		return isRefused
	}
	defer answer.Body.Close()
	decoder := json.NewDecoder(answer.Body)
	for {
		var frame json.RawMessage
		if err := decoder.Decode(&frame); err != nil {
			j.error(err)
			return false
		}
		j.frame(true, frame)
	}
}

func (j *job) r3labs() bool {
	isRefused := false
	client := r3labs.NewClient(j.Url)
	if j.Set {
		r3labs.ClientMaxBufferSize(limit)(client)
		// Its own repeats cannot be left, so the loop repeats.
		client.ReconnectStrategy = &backoff.StopBackOff{}
		client.ResponseValidator = func(_ *r3labs.Client, answer *http.Response) error {
			if answer.StatusCode == 200 {
				return nil
			}
			isRefused = j.isRefused(answer, nil)
			return errors.New(answer.Status)
		}
		if j.After != "0" {
			client.LastEventID.Store([]byte(j.After))
		}
	}
	for name := range j.headers() {
		client.Headers[name] = j.headers().Get(name)
	}
	err := client.SubscribeRaw(func(event *r3labs.Event) {
		j.sse(string(event.ID), string(event.Event), string(event.Data))
	})
	if err != nil {
		j.error(err)
	}
	return isRefused
}

func (j *job) tmaxmax() {
	request, _ := http.NewRequest("GET", j.Url, nil)
	request.Header = j.headers()
	connection := sse.NewConnection(request)
	if j.Set {
		connection.Buffer(nil, limit)
	}
	connection.SubscribeToAll(func(event sse.Event) { j.sse(event.LastEventID, event.Type, event.Data) })
	j.error(connection.Connect())
}
