package telemetry

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	spans "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/testenv"
)

// gather is a collector that keeps what it is sent by OTLP over HTTP.
type gather struct {
	mu    sync.Mutex
	spans []*spans.Span
}

func (g *gather) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var sent collector.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(body, &sent)
	}
	if err != nil || r.URL.Path != "/v1/traces" {
		http.Error(w, fmt.Sprint(err), http.StatusBadRequest)
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, resource := range sent.GetResourceSpans() {
		for _, scope := range resource.GetScopeSpans() {
			g.spans = append(g.spans, scope.GetSpans()...)
		}
	}
}

// tree is what was gathered, each below its parent, in the order of their starts.
func (g *gather) tree(roots ...string) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	slices.SortFunc(g.spans, func(a, b *spans.Span) int {
		return int(int64(a.GetStartTimeUnixNano()) - int64(b.GetStartTimeUnixNano()))
	})
	var out strings.Builder
	var below func(parent, indent string)
	below = func(parent, indent string) {
		for _, s := range g.spans {
			if string(s.GetParentSpanId()) == parent {
				status := ""
				if s.GetStatus().GetCode() == spans.Status_STATUS_CODE_ERROR {
					status = ", error: " + s.GetStatus().GetMessage()
				}
				fmt.Fprintf(&out, "%s%s %dms%s\n", indent, s.GetName(), (s.GetEndTimeUnixNano()-s.GetStartTimeUnixNano())/1e6, status)
				below(string(s.GetSpanId()), indent+"  ")
			}
		}
	}
	for _, root := range roots {
		below(root, "")
	}
	return out.String()
}

// ended writes a task that has ended: a Go step that was tried twice, and a Ruby step.
func ended(t *testing.T, s *store.Store) *store.Claimed {
	t.Helper()
	pool := testenv.Pool(t, testenv.Database(t))
	*s = *store.New(pool)
	if _, err := pool.Exec(t.Context(), `
		SELECT tasker.register_template('shop', 'order', '1.0.0', '', '{}', 'c', 1, '[{"position": 0, "name": "charge", "handler": "h", "attempt_limit": 3},
			{"position": 1, "name": "ship", "handler_class": "Ship", "attempt_limit": 1, "depends_on": [0]}]');
		SET session_replication_role = replica;
		INSERT INTO tasker.tasks (task_id, template_id, namespace, name, version, state, created_at, started_at, finished_at)
		OVERRIDING SYSTEM VALUE VALUES (7, 1, 'shop', 'order', '1.0.0', 'error', '2026-01-01 10:00:00Z', '2026-01-01 10:00:01Z', '2026-01-01 10:00:20Z');
		INSERT INTO tasker.steps (step_id, task_id, position, name, state, attempts, started_at, finished_at) OVERRIDING SYSTEM VALUE VALUES
			(11, 7, 0, 'charge', 'complete', 2, '2026-01-01 10:00:05.5Z', '2026-01-01 10:00:06Z'), (12, 7, 1, 'ship', 'error', 1, '2026-01-01 10:00:08Z', '2026-01-01 10:00:20Z');
		INSERT INTO tasker.events (task_id, step_id, attempt, name, created_at, data) VALUES
			(7, 11, 1, 'step.handle', '2026-01-01 10:00:01Z', NULL), (7, 11, 1, 'step.retry_requested', '2026-01-01 10:00:02Z', '{"class": "Timeout", "message": "no answer"}'),
			(7, 11, 2, 'step.handle', '2026-01-01 10:00:05Z', NULL), (7, 11, 2, 'step.completed', '2026-01-01 10:00:05.9Z', NULL),
			(7, 12, 1, 'step.execution_requested', '2026-01-01 10:00:06Z', NULL), (7, 12, 1, 'step.handle', '2026-01-01 10:00:08Z', NULL),
			(7, 12, 1, 'step.failed', '2026-01-01 10:00:20Z', '{"class": "NoShip", "message": "sunk"}')`); err != nil {
		t.Fatal(err)
	}
	return &store.Claimed{TaskID: 7, CorrelationID: "req-1"}
}

const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

func TestATasksTraceIsWhatBecameOfIt(t *testing.T) {
	t.Parallel()
	var s store.Store
	task := ended(t, &s)
	for _, c := range []struct {
		parent string
		oneIn  int
		want   bool
	}{{parent, 1e9, true}, {strings.TrimSuffix(parent, "01") + "00", 1, false}, {"", 1e9, false}, {"", 1, true}, {"nonsense", 1, true}} {
		var g gather
		server := httptest.NewServer(&g)
		traces, err := NewTraces(t.Context(), &s, TraceConfig{Endpoint: server.URL, OneIn: c.oneIn}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		task.TraceParent = c.parent
		traces.Ended(task)
		if err := traces.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		server.Close()
		root := ""
		if c.parent == parent {
			root = "\x00\xf0\x67\xaa\x0b\xa9\x02\xb7"
		}
		want := ""
		if c.want {
			want = `task shop/order 20000ms, error: the task is in error
  wait for a worker 1000ms
  step charge 1000ms, error: no answer
  step charge 500ms
  Sidekiq queue 2000ms
  step ship 12000ms, error: sunk
`
		}
		if got := g.tree(root); got != want {
			t.Errorf("with parent %q and one in %d the trace is\n%s, not\n%s", c.parent, c.oneIn, got, want)
		}
		traced := map[string]bool{}
		for _, span := range g.spans {
			traced[string(span.GetTraceId())] = true
			if c.parent == parent && fmt.Sprintf("%x", span.GetTraceId()) != parent[3:35] {
				t.Errorf("span %s is in trace %x", span.GetName(), span.GetTraceId())
			}
		}
		if c.want && len(traced) != 1 {
			t.Errorf("with parent %q there are %d traces", c.parent, len(traced))
		}
	}
}

// A handler's spans are below its attempt's, whose id both languages derive.
func TestAnAttemptIsASpanOfTheSameIDInBothLanguages(t *testing.T) {
	t.Parallel()
	var examples []struct {
		TraceParent string `json:"traceparent"`
		StepID      int64  `json:"step_id"`
		Attempt     int    `json:"attempt"`
		OfAttempt   string `json:"of_attempt"`
	}
	doc, err := os.ReadFile("../contract/trace.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(doc, &examples); err != nil || len(examples) == 0 {
		t.Fatalf("contract/trace.json: %v", err)
	}
	traces := &Traces{salt: "s", share: 0}
	for _, x := range examples {
		ctx := traces.Context(t.Context(), &store.Claimed{TaskID: 1, TraceParent: x.TraceParent}, x.StepID, x.Attempt)
		c := trace.SpanContextFromContext(ctx)
		if got := fmt.Sprintf("00-%s-%s-%02x", c.TraceID(), c.SpanID(), byte(c.TraceFlags())); got != x.OfAttempt || !c.IsRemote() {
			t.Errorf("attempt %d of step %d: %s, not %s", x.Attempt, x.StepID, got, x.OfAttempt)
		}
	}
	if ctx := traces.Context(t.Context(), &store.Claimed{TaskID: 1}, 1, 1); trace.SpanContextFromContext(ctx).IsValid() {
		t.Error("a handler of a task that nobody traces is in a trace")
	}
}

// A share is a share.
func TestOfTasksWithoutAParentAShareIsTraced(t *testing.T) {
	t.Parallel()
	for _, oneIn := range []int{1, 10, 100} {
		traces, err := newTraces(nil, discard{}, "s", oneIn, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for id := range int64(100_000) {
			if _, _, sampled := traces.of(&store.Claimed{TaskID: id}); sampled {
				n++
			}
		}
		if want := 100_000 / oneIn; n < want*8/10 || n > want*12/10 {
			t.Errorf("of 100,000 tasks %d are traced, with one in %d", n, oneIn)
		}
		if err := traces.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

type discard struct{}

func (discard) ExportSpans(context.Context, []sdktrace.ReadOnlySpan) error { return nil }
func (discard) Shutdown(context.Context) error                             { return nil }

// A collector that hangs holds up nobody: not the loops, and not the end for longer
// than it may take.
func TestACollectorThatHangsHoldsUpNobody(t *testing.T) {
	t.Parallel()
	var s store.Store
	task := ended(t, &s)
	task.TraceParent = parent
	hang, served := make(chan struct{}), make(chan struct{}, 100)
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		<-hang
		served <- struct{}{}
	}))
	defer server.Close()
	traces, err := NewTraces(t.Context(), &s, TraceConfig{Endpoint: server.URL}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	traces.Ended(task)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := traces.Close(ctx); err == nil {
		t.Error("what could not be exported is not spoken of")
	}
	close(hang)
	<-served
	// The other way round: the database is what hangs.
	full := &Traces{ended: make(chan *store.Claimed, 1), share: ^uint64(0), log: slog.New(slog.DiscardHandler)}
	for range 3 {
		full.Ended(task)
	}
	if n := full.dropped.Load(); n != 2 {
		t.Errorf("with one place, %d of 3 are left out", n)
	}
}
