package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"
)

// span is one as it was exported, from either side.
type span struct {
	Name   string `json:"name"`
	Trace  string `json:"trace_id"`
	ID     string `json:"span_id"`
	Parent string `json:"parent_span_id"`
	Start  uint64 `json:"start"` // nanoseconds since 1970
	End    uint64 `json:"end"`
	error  string
	task   string
}

// collection stands for a collector of traces: the worker exports to it by OTLP over
// HTTP, and the Rails processes, for want of OpenTelemetry's gems, by opentelemetry.rb.
type collection struct {
	server http.Server
	url    string

	mu    sync.Mutex
	spans []span
}

func collect() (*collection, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("collect traces: %w", err)
	}
	c := &collection{url: "http://" + listener.Addr().String()}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/traces", c.takes(c.takeOTLP))
	mux.HandleFunc("POST /ruby", c.takes(c.takeRuby))
	c.server = http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = c.server.Serve(listener) }() // until it is closed
	return c, nil
}

func (c *collection) close() error { return c.server.Close() }

func (c *collection) takes(take func(body []byte) ([]span, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		spans, err := take(body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.spans = append(c.spans, spans...)
	}
}

func (c *collection) takeRuby(body []byte) ([]span, error) {
	var s span
	err := json.Unmarshal(body, &s)
	return []span{s}, err
}

func (c *collection) takeOTLP(body []byte) (all []span, err error) {
	var sent collector.ExportTraceServiceRequest
	if err := proto.Unmarshal(body, &sent); err != nil {
		return nil, err
	}
	for _, resource := range sent.GetResourceSpans() {
		for _, scope := range resource.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				one := span{
					Name: s.GetName() + " (tasker)", Trace: hex.EncodeToString(s.GetTraceId()), ID: hex.EncodeToString(s.GetSpanId()), Parent: hex.EncodeToString(s.GetParentSpanId()),
					Start: s.GetStartTimeUnixNano(), End: s.GetEndTimeUnixNano(),
				}
				if s.GetStatus().GetMessage() != "" {
					one.error = s.GetStatus().GetMessage()
				}
				for _, a := range s.GetAttributes() {
					if a.GetKey() == "tasker.task_id" {
						one.task = fmt.Sprint(a.GetValue().GetIntValue())
					}
				}
				all = append(all, one)
			}
		}
	}
	return all, nil
}

// tree is the trace of a task, each span below its parent, with when it began and
// how long it took. It fails where a span's parent is nowhere.
func (c *collection) tree(task int64) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := slices.IndexFunc(c.spans, func(s span) bool { return s.task == fmt.Sprint(task) })
	if at < 0 {
		return "", fmt.Errorf("nobody exported a span of task %d", task)
	}
	var of []span
	for _, s := range c.spans {
		if s.Trace == c.spans[at].Trace {
			of = append(of, s)
		}
	}
	slices.SortFunc(of, func(a, b span) int { return int(int64(a.Start) - int64(b.Start)) })
	var out strings.Builder
	shown := 0
	var below func(parent, indent string)
	below = func(parent, indent string) {
		for _, s := range of {
			if s.Parent != parent {
				continue
			}
			shown++
			fmt.Fprintf(&out, "%s%s  +%.1f ms, %.1f ms", indent, s.Name, float64(s.Start-of[0].Start)/1e6, float64(s.End-s.Start)/1e6)
			if s.error != "" {
				fmt.Fprintf(&out, ", failed: %s", s.error)
			}
			fmt.Fprintln(&out)
			below(s.ID, indent+"  ")
		}
	}
	below("", "")
	if shown < len(of) {
		return out.String(), fmt.Errorf("of %d spans of the trace %d have parents that are nowhere", len(of), len(of)-shown)
	}
	return out.String(), nil
}

// startTracing has the processes to come export to a collector of this run.
func (d *demo) startTracing() (err error) {
	if d.traces, err = collect(); err != nil {
		return err
	}
	d.cleanup = append(d.cleanup, d.traces.close)
	d.env = append(d.env, "OTEL_EXPORTER_OTLP_ENDPOINT="+d.traces.url, "TASKER_TELEMETRY_TRACE_ONE_IN=1000000000",
		"RUBYOPT=-r"+filepath.Join(d.root, "examples", "demo", "opentelemetry.rb"))
	return nil
}

// writeTrace writes the trace of the first order whose charge had to be tried again.
func (d *demo) writeTrace(orders []order) error {
	at := slices.IndexFunc(orders, func(o order) bool {
		return o.Committed && o.Expect.ChargeAttempts > 1 && o.Expect.Task == "complete"
	})
	if at < 0 {
		return fmt.Errorf("no order was charged twice")
	}
	tree, err := d.traces.tree(orders[at].TaskID)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, tree)
	}
	text := "# The trace of one order\n\n" +
		"An order of the demonstration, whose card was busy once: from the Rails process that placed it over the INSERT, the worker and Sidekiq to the\n" +
		"handlers and the end, in one trace. What is followed by (tasker) was exported by the worker over OTLP; the rest by the Rails and Sidekiq\n" +
		"processes, through a stand-in for OpenTelemetry's gems, which Debian does not package. Times: since the first span began, and how long.\n" +
		"`make demo DEMO='-trace docs/trace.md'` writes this page; [observability.md](observability.md) says how it comes about.\n\n```\n" + tree + "```\n"
	if err := os.WriteFile(d.trace, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write the trace: %w", err)
	}
	d.screen.item(true, "the trace of order "+fmt.Sprint(orders[at].OrderID)+" is in "+d.trace, "")
	return nil
}
