package server_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/server"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

type site struct {
	*testing.T
	*httptest.Server
	pool *pgxpool.Pool
	end  context.CancelFunc
}

func newSite(t *testing.T, token string) *site {
	t.Helper()
	t.Parallel()
	pool := testenv.Pool(t, testenv.Database(t))
	ending, end := context.WithCancel(t.Context())
	s := &site{T: t, pool: pool, end: end}
	s.Server = httptest.NewServer(server.Handler(server.Options{
		Probe: server.Probe{Store: store.New(pool)}, Token: token, Ending: ending, Logger: slog.New(slog.DiscardHandler),
		Metrics:  http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "some_metric 1") }),
		Loopback: true, Slowest: 4 * time.Second,
	}))
	t.Cleanup(func() { end(); s.Close() })
	return s
}

func (s *site) exec(sql string, args ...any) {
	s.Helper()
	if _, err := s.pool.Exec(s.Context(), sql, args...); err != nil {
		s.Fatal(err)
	}
}

// answer is one that is closed with the test, at the latest.
type answer struct{ *http.Response }

// get asks for a path, with headers.
func (s *site) get(path string, headers ...string) answer {
	s.Helper()
	request, err := http.NewRequestWithContext(s.Context(), http.MethodGet, s.URL+path, nil)
	if err != nil {
		s.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	response, err := s.Client().Do(request)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { response.Body.Close() })
	return answer{response}
}

func (s *site) read(response answer) string {
	s.Helper()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		s.Fatal(err)
	}
	return string(text)
}

func TestWhatIsAskedWronglyIsSaid(t *testing.T) {
	s := newSite(t, "")
	for path, want := range map[string]string{
		"/analytics/performance?period=soon":    `400 {"error":"period: a period is such as 90m, 4h or 7d, up to 36500d, not \"soon\""}`,
		"/analytics/bottlenecks?period=-1h":     `400 {"error":"period: a period is such as 90m, 4h or 7d, up to 36500d, not \"-1h\""}`,
		"/analytics/tasks/0":                    `400 {"error":"a task's id is a number from 1, not \"0\""}`,
		"/analytics/tasks/7":                    `404 {"error":"task 7: not found"}`,
		"/events?since=x":                       `400 {"error":"since: a period is such as 90m, 4h or 7d, up to 36500d, not \"x\""}`,
		"/events?pattern=UPPER":                 `400 {"error":"pattern: `,
		"/events?last_event_id=(1,2)":           `400 {"error":"Last-Event-ID or pattern: `,
		"/analytics/performance?name=%00":       `400 {"error":"name: the value \"\\x00\" must be UTF-8 without NUL"}`,
		"/analytics/bottlenecks?namespace=%ff":  `400 {"error":"namespace: the value \"\\xff\" must be UTF-8 without NUL"}`,
		"/analytics/tasks/1?%00=x":              `400 {"error":"query: the name \"\\x00\" must be UTF-8 without NUL"}`,
		"/analytics/tasks/1?x=%zz":              `400 {"error":"query: invalid URL escape \"%zz\"; write it as name=value`,
		"/events?pattern=a.%00":                 `400 {"error":"pattern: the value `,
		"/events?pattern=*&pattern=%ff":         `400 {"error":"pattern: the value `,
		"/events?last_event_id=%00":             `400 {"error":"last_event_id: the value `,
		"/events?since=%00":                     `400 {"error":"since: the value `,
		"/health/status?a=%00":                  `400 {"error":"a: the value `,
		"/metrics?a=%00":                        `400 {"error":"a: the value `,
		"/analytics/tasks/99999999999999999999": `400 {"error":"a task's id is a number from 1, not \"99999999999999999999\""}`,
	} {
		r := s.get(path)
		if got := fmt.Sprintf("%d %s", r.StatusCode, strings.TrimSpace(s.read(r))); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %s, not %s", path, got, want)
		}
	}
}

func TestALastEventIDThatIsNoTextIsRefused(t *testing.T) {
	s := newSite(t, "")
	if r := s.get("/events", "Last-Event-ID", "\xff"); r.StatusCode != http.StatusBadRequest {
		t.Errorf("%d %s", r.StatusCode, s.read(r))
	}
}

// A web page whose name was bound to 127.0.0.1 must not read what the worker answers.
func TestOnLoopbackOnlyLocalHostsAreAnswered(t *testing.T) {
	s := newSite(t, "")
	for host, want := range map[string]int{
		"localhost": http.StatusOK, "LOCALHOST:8080": http.StatusOK, "127.0.0.1": http.StatusOK, "127.0.0.1:80": http.StatusOK, "[::1]": http.StatusOK, "[::1]:8080": http.StatusOK,
		"evil.example": http.StatusMisdirectedRequest, "evil.example:8080": http.StatusMisdirectedRequest, "localhost.evil.example": http.StatusMisdirectedRequest,
		"127.0.0.1.evil.example": http.StatusMisdirectedRequest, "10.0.0.1": http.StatusMisdirectedRequest, "0.0.0.0": http.StatusMisdirectedRequest,
	} {
		for _, path := range []string{"/health/live", "/health/status", "/metrics", "/none"} {
			request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			request.Host = host
			response, err := s.Client().Do(request)
			if err != nil {
				t.Fatal(err)
			}
			said := s.read(answer{response})
			response.Body.Close()
			if path == "/none" && want == http.StatusOK {
				continue
			}
			if response.StatusCode != want || want != http.StatusOK && !strings.Contains(said, "server.listen") {
				t.Errorf("%s of host %s: %d %s", path, host, response.StatusCode, said)
			}
		}
	}
}

// Clients that ask and never read keep no place from others, and are cut off.
func TestClientsThatDoNotReadKeepNoPlace(t *testing.T) {
	s := newSite(t, "")
	// Answers that are larger than the server's buffers.
	s.exec(`SELECT tasker.register_template('n', 'template_' || i, '1.0.0', '', '{}', 'c', 1, '[{"position": 0, "name": "s", "handler_class": "H", "attempt_limit": 3}]')
		FROM generate_series(1, 100) i`)
	s.exec(`INSERT INTO tasker.stats SELECT span, date_bin(make_interval(mins => span), now(), '2000-01-01 00:00+00'), t.template_id, v.*
		FROM tasker.task_templates t, (VALUES (5), (60)) AS g(span), (VALUES (-1, 'completed', 0, 8, 0), (0, 'completed', 0, 50, 0)) AS v`)
	if r := s.get("/analytics/performance"); len(s.read(r)) < 10_000 {
		t.Fatal("the answer is too small to fill a buffer")
	}
	var deaf []net.Conn
	var asking sync.WaitGroup
	for _, path := range []string{"/analytics/performance", "/analytics/performance", "/analytics/performance"} {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", s.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.(*net.TCPConn).SetReadBuffer(4096); err != nil {
			t.Fatal(err)
		}
		deaf = append(deaf, conn)
		asking.Go(func() {
			questions := []byte(strings.Repeat("GET "+path+" HTTP/1.1\r\nHost: localhost\r\n\r\n", 200))
			for { // until the server reads no more, as it can't write
				if err := conn.SetWriteDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
					t.Error(err)
				}
				if _, err := conn.Write(questions); err != nil {
					return
				}
			}
		})
	}
	asking.Wait()
	time.Sleep(300 * time.Millisecond) // the server is at what it was asked before
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	for _, path := range []string{"/health/status", "/analytics/bottlenecks"} {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := s.Client().Do(request)
		if err != nil {
			t.Fatalf("%s, while others do not read: %v", path, err)
		}
		if response.Body.Close(); response.StatusCode != http.StatusOK {
			t.Errorf("%s, while others do not read: %s", path, response.Status)
		}
	}
	time.Sleep(5 * time.Second) // the time that an answer may take has passed
	for _, conn := range deaf {
		if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("a client that did not read is still connected")
		}
	}
}

func TestTheTokenIsAskedForWhereItMatters(t *testing.T) {
	s := newSite(t, "secret")
	for path, open := range map[string]bool{
		"/health/live": true, "/health/ready": true, "/health/status": false, "/analytics/performance": false, "/analytics/bottlenecks": false,
		"/analytics/tasks/1": false, "/events": false, "/metrics": false,
	} {
		for _, token := range []string{"", "Bearer wrong", "secret", "Basic secret", "Bearer secret2"} {
			r := s.get(path, "Authorization", token)
			if refused := r.StatusCode == http.StatusUnauthorized; refused == open {
				t.Errorf("%s with %q: %d", path, token, r.StatusCode)
			}
			r.Body.Close()
		}
		if r := s.get(path, "Authorization", "Bearer secret"); r.StatusCode == http.StatusUnauthorized {
			t.Errorf("%s is refused with the token", path)
		} else {
			r.Body.Close()
		}
	}
}

func TestStatus(t *testing.T) {
	s := newSite(t, "")
	s.exec(`SELECT tasker.register_template('n', 't', '1.0.0', '', '{}', 'c', 1, '[{"position": 0, "name": "s", "handler_class": "H", "attempt_limit": 3}]')`)
	s.exec(`INSERT INTO tasker.tasks (namespace, name) SELECT 'n', 't' FROM generate_series(1, 3)`)
	s.exec(`INSERT INTO tasker.dispatches (step_id, task_id, attempt, queue, started_at) VALUES (1, 1, 1, 'default', now()), (2, 2, 1, 'default', NULL)`)
	s.exec(`INSERT INTO tasker.stats SELECT span, date_bin(make_interval(mins => span), now(), '2000-01-01 00:00+00'), 1, v.* FROM (VALUES (5), (60)) AS g(span),
		(VALUES (-1, 'completed', 0, 8, 0), (-1, 'failed', 0, 12, 0), (0, 'completed', 0, 50, 0), (0, 'retried', 0, 7, 0), (0, 'exhausted', 0, 4, 0), (0, 'failed', 0, 12, 0)) AS v`)
	var got server.Status
	if err := json.Unmarshal([]byte(s.read(s.get("/health/status"))), &got); err != nil {
		t.Fatal(err)
	}
	if got.Metrics.Tasks.Pending != 3 || got.Metrics.Tasks.Complete != 8 || got.Metrics.Steps.Enqueued != 1 || got.Metrics.Steps.InProgress != 1 ||
		got.Metrics.Retries.Retryable != 7 || got.Metrics.Retries.Exhausted != 4 || got.Database.Active < 1 || got.Database.Most < got.Database.Active || got.Cached {
		t.Errorf("status %+v", got)
	}
	if want := []string{"60 % of the tasks that ended in the last hour failed; the most is 50 %"}; got.Healthy || !slices.Equal(got.Reasons, want) {
		t.Errorf("healthy: %t, reasons %q, not %q", got.Healthy, got.Reasons, want)
	}
	if err := json.Unmarshal([]byte(s.read(s.get("/health/status"))), &got); err != nil || !got.Cached {
		t.Errorf("asked again, it is cached: %t (%v)", got.Cached, err)
	}
}

// listen reads a stream of events until it has n, and returns them with the last id.
func (s *site) listen(n int, path string, headers ...string) (got []tasker.Event, id string) {
	s.Helper()
	r := s.get(path, headers...)
	if r.StatusCode != http.StatusOK || r.Header.Get("Content-Type") != "text/event-stream" {
		s.Fatalf("%s: %s, %s", path, r.Status, s.read(r))
	}
	lines := bufio.NewScanner(r.Body)
	lines.Buffer(nil, 1<<20)
	name := ""
	for len(got) < n && lines.Scan() {
		field, value, _ := strings.Cut(lines.Text(), ": ")
		switch field {
		case "id":
			id = value
		case "event":
			name = value
		case "data":
			var e tasker.Event
			if err := json.Unmarshal([]byte(value), &e); err != nil || string(e.Name) != name {
				s.Fatalf("event %s: %s (%v)", name, value, err)
			}
			got = append(got, e)
		}
	}
	if len(got) < n {
		s.Fatalf("the stream ended after %d events of %d: %v", len(got), n, lines.Err())
	}
	r.Body.Close()
	return got, id
}

// A client that was away goes on where it was, and misses nothing.
func TestAStreamGoesOnWhereItWas(t *testing.T) {
	s := newSite(t, "")
	publish := func(from, to int) {
		s.exec(`SELECT tasker.publish_event('n.e' || i % 2, jsonb_build_object('i', i)) FROM generate_series($1::int, $2::int) i`, from, to)
	}
	publish(1, 10)
	got, id := s.listen(10, "/events?since=1h&pattern=n.*")
	if id == "" {
		t.Fatal("the batch has no id")
	}
	publish(11, 15)
	more, id := s.listen(5, "/events?pattern=n.*", "Last-Event-ID", id)
	got = append(got, more...)
	// Another pattern, from the same place; and while it listens, they come.
	go publish(16, 21)
	more, _ = s.listen(3, "/events?pattern=n.e1&last_event_id="+strings.NewReplacer("{", "%7B", "}", "%7D").Replace(id))
	got = append(got, more...)
	var numbers []int
	for _, e := range got {
		var data struct{ I int }
		if err := json.Unmarshal(e.Data, &data); err != nil {
			t.Fatal(err)
		}
		numbers = append(numbers, data.I)
	}
	if want := []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 19, 21}; !slices.Equal(numbers, want) {
		t.Errorf("got events %v, not %v", numbers, want)
	}
}

// Streams end with the worker, and are no more than there is room for.
func TestStreamsEndAndAreBounded(t *testing.T) {
	s := newSite(t, "")
	var open []answer
	for {
		r := s.get("/events")
		if r.StatusCode == http.StatusServiceUnavailable {
			break
		}
		open = append(open, r)
		if len(open) > 100 {
			t.Fatal("there is room for more than 100 streams")
		}
	}
	s.end()
	for _, r := range open {
		done := make(chan struct{})
		go func() { _, _ = io.Copy(io.Discard, r.Body); close(done) }()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Fatal("a stream goes on although its worker ends")
		}
	}
}
