package telemetry

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/safetext"
	"github.com/taskerhq/tasker/store"
)

// Traces exports what became of tasks as OpenTelemetry spans: one trace per task,
// whichever processes ran it and however often they were restarted.
//
// A span's id follows from the task, the step and the attempt. So nobody has to
// remember it: whoever runs an attempt knows which span its own spans belong to,
// and the spans are made when the task has ended, from what the database keeps of
// its course. A task whose carrier has a W3C traceparent is part of that trace, and
// exported if that was sampled; of others a share is.
type Traces struct {
	store    *store.Store
	log      *slog.Logger
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
	salt     string // of this database: task 1 of another is another task
	share    uint64 // of traces without a parent: those whose number is below

	ended   chan *store.Claimed
	closing chan struct{}
	ctx     context.Context // ends when no more may be exported
	cancel  context.CancelFunc
	done    sync.WaitGroup
	dropped atomic.Int64
}

// TraceConfig says where traces go.
type TraceConfig struct {
	Endpoint string // of OTLP over HTTP, such as http://localhost:4318
	OneIn    int    // of tasks without a parent, one in so many is traced; default 100
}

// DefaultOneIn is the share of tasks without a parent that are traced.
const DefaultOneIn = 100

// waitingForExport is how many ended tasks may wait to be exported; more are left out.
const waitingForExport = 1000

// NewTraces starts exporting. It must be closed.
func NewTraces(ctx context.Context, s *store.Store, c TraceConfig, log *slog.Logger) (*Traces, error) {
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(c.Endpoint+"/v1/traces"))
	if err != nil {
		return nil, fmt.Errorf("export traces to %s: %s", safetext.MaskAddress(c.Endpoint), safetext.Mask(err.Error()))
	}
	// The SDK has one place for what goes wrong later, for all of the process.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("traces can't be exported", "error", safetext.Mask(err.Error())) }))
	salt, err := s.Identity(ctx)
	if err != nil {
		return nil, err
	}
	if c.OneIn == 0 {
		c.OneIn = DefaultOneIn
	}
	return newTraces(s, exporter, salt, c.OneIn, log)
}

func newTraces(s *store.Store, exporter sdktrace.SpanExporter, salt string, oneIn int, log *slog.Logger) (*Traces, error) {
	about, err := resource.Merge(resource.Default(), resource.NewSchemaless(attribute.String("service.name", "tasker")))
	if err != nil {
		return nil, fmt.Errorf("export traces: %w", err)
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithSampler(sdktrace.AlwaysSample()), sdktrace.WithIDGenerator(ids{}), sdktrace.WithResource(about))
	t := &Traces{
		store: s, log: log, provider: provider, tracer: provider.Tracer("github.com/taskerhq/tasker"), salt: salt,
		share: ^uint64(0) / uint64(oneIn), ended: make(chan *store.Claimed, waitingForExport), closing: make(chan struct{}),
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.done.Go(t.run)
	return t, nil
}

// Close exports what has ended, as far as ctx allows.
func (t *Traces) Close(ctx context.Context) error {
	close(t.closing)
	stop := context.AfterFunc(ctx, t.cancel)
	t.done.Wait()
	stop()
	t.cancel()
	if n := t.dropped.Load(); n > 0 {
		t.log.Warn("tasks ended faster than their traces could be exported; some are missing", "tasks", n)
	}
	if err := t.provider.Shutdown(ctx); err != nil {
		return fmt.Errorf("export traces: %w", err)
	}
	return nil
}

// Context implements orchestrator.Tracer: spans of the handler are children of the
// attempt's.
func (t *Traces) Context(ctx context.Context, c *store.Claimed, step int64, attempt int) context.Context {
	parent, id, sampled := t.of(c)
	if !sampled && !parent.IsValid() {
		return ctx
	}
	return trace.ContextWithRemoteSpanContext(ctx, trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: id, SpanID: AttemptSpan(id, step, attempt), TraceFlags: trace.TraceFlags(0).WithSampled(sampled), TraceState: parent.TraceState(), Remote: true,
	}))
}

// Ended implements orchestrator.Tracer.
func (t *Traces) Ended(c *store.Claimed) {
	if _, _, sampled := t.of(c); !sampled {
		return
	}
	select {
	case t.ended <- c:
	default:
		t.dropped.Add(1)
	}
}

// of is the trace of a task.
func (t *Traces) of(c *store.Claimed) (parent trace.SpanContext, id trace.TraceID, sampled bool) {
	if c.TraceParent != "" {
		ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{"traceparent": c.TraceParent})
		if parent = trace.SpanContextFromContext(ctx); parent.IsValid() {
			return parent, parent.TraceID(), parent.IsSampled()
		}
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/task/%d", t.salt, c.TaskID))
	id = trace.TraceID(sum[:16])
	return trace.SpanContext{}, id, binary.BigEndian.Uint64(sum[16:24]) <= t.share
}

// spanID derives an id within a trace. The gem does the same: contract/trace.json.
func spanID(id trace.TraceID, what string) trace.SpanID {
	sum := sha256.Sum256([]byte(hex.EncodeToString(id[:]) + "/" + what))
	return trace.SpanID(sum[:8])
}

// TaskSpan is the id of a task's span within its trace.
func TaskSpan(id trace.TraceID, task int64) trace.SpanID {
	return spanID(id, fmt.Sprintf("task/%d", task))
}

// AttemptSpan is the id of an attempt's.
func AttemptSpan(id trace.TraceID, step int64, attempt int) trace.SpanID {
	return spanID(id, fmt.Sprintf("attempt/%d/%d", step, attempt))
}

// next is the id of the span that is begun with a context.
type next struct {
	trace trace.TraceID
	span  trace.SpanID
}

type nextKey struct{}

// ids gives spans the ids that their context says.
type ids struct{}

func (ids) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	n, _ := ctx.Value(nextKey{}).(next)
	return n.trace, n.span
}

func (ids) NewSpanID(ctx context.Context, _ trace.TraceID) trace.SpanID {
	n, _ := ctx.Value(nextKey{}).(next)
	return n.span
}

func (t *Traces) run() {
	failing := false
	for {
		var c *store.Claimed
		select {
		case c = <-t.ended:
		default:
			select {
			case c = <-t.ended:
			case <-t.closing:
				return // all that had ended is exported
			case <-t.ctx.Done():
				return
			}
		}
		if t.ctx.Err() != nil {
			t.dropped.Add(1 + int64(len(t.ended)))
			return
		}
		ctx, cancel := context.WithTimeout(t.ctx, asking)
		err := t.export(ctx, c)
		cancel()
		if err != nil && !failing {
			t.log.Warn("the trace of a task could not be exported", "task_id", c.TaskID, "error", err)
		}
		failing = err != nil
	}
}

// export makes the spans of a task that has ended.
func (t *Traces) export(ctx context.Context, c *store.Claimed) error {
	h, err := t.store.History(ctx, c.TaskID)
	if err != nil {
		return err
	}
	parent, id, _ := t.of(c)
	end := h.Now
	if h.Task.FinishedAt != nil {
		end = *h.Task.FinishedAt
	}
	of := []attribute.KeyValue{
		attribute.Int64("tasker.task_id", c.TaskID), attribute.String("tasker.namespace", h.Task.Namespace), attribute.String("tasker.template", h.Task.Name),
		attribute.String("tasker.version", h.Task.Version),
	}
	if c.CorrelationID != "" {
		of = append(of, attribute.String("tasker.correlation_id", c.CorrelationID))
	}
	above := context.Background()
	if parent.IsValid() {
		above = trace.ContextWithRemoteSpanContext(above, parent)
	}
	begin := func(above context.Context, name string, span trace.SpanID, kind trace.SpanKind, at time.Time, with ...attribute.KeyValue) (context.Context, trace.Span) {
		return t.tracer.Start(context.WithValue(above, nextKey{}, next{id, span}), name, trace.WithSpanKind(kind), trace.WithTimestamp(at), trace.WithAttributes(append(with, of...)...))
	}
	in, task := begin(above, "task "+h.Task.Namespace+"/"+h.Task.Name, TaskSpan(id, c.TaskID), trace.SpanKindConsumer, h.Task.CreatedAt, attribute.String("tasker.state", string(h.Task.State)))
	if h.Task.State == tasker.TaskError {
		task.SetStatus(codes.Error, "the task is in error")
	}
	if h.Task.StartedAt != nil {
		ready := h.Task.CreatedAt
		if h.RunAt != nil && h.RunAt.After(ready) {
			ready = *h.RunAt
		}
		_, wait := begin(in, "wait for a worker", spanID(id, fmt.Sprintf("wait/%d", c.TaskID)), trace.SpanKindInternal, ready)
		wait.End(trace.WithTimestamp(*h.Task.StartedAt))
	}
	for i := range h.Steps {
		t.exportStep(in, &h.Steps[i], id, begin)
	}
	task.End(trace.WithTimestamp(end))
	return nil
}

type beginner func(above context.Context, name string, span trace.SpanID, kind trace.SpanKind, at time.Time, with ...attribute.KeyValue) (context.Context, trace.Span)

// exportStep makes the spans of a step's attempts: of the queue that each waited in,
// and of its run.
func (t *Traces) exportStep(in context.Context, s *store.StepHistory, id trace.TraceID, begin beginner) {
	about := func(n int) []attribute.KeyValue {
		return []attribute.KeyValue{attribute.String("tasker.step", s.Name), attribute.Int64("tasker.step_id", s.ID), attribute.Int("tasker.attempt", n)}
	}
	var queued, begun time.Time
	for _, e := range s.Events {
		switch e.Name {
		case tasker.EventStepEnqueued:
			queued = e.At
		case tasker.EventStepStarted:
			begun = e.At
			if !queued.IsZero() {
				_, span := begin(in, "Sidekiq queue", spanID(id, fmt.Sprintf("queue/%d/%d", s.ID, e.Attempt)), trace.SpanKindProducer, queued, about(e.Attempt)...)
				span.End(trace.WithTimestamp(begun))
				queued = time.Time{}
			}
		case tasker.EventStepCompleted, tasker.EventStepFailed, tasker.EventStepRetry, tasker.EventStepCancelled:
			if begun.IsZero() {
				continue // it never ran
			}
			_, span := begin(in, "step "+s.Name, AttemptSpan(id, s.ID, e.Attempt), trace.SpanKindConsumer, begun, about(e.Attempt)...)
			if e.Name == tasker.EventStepFailed || e.Name == tasker.EventStepRetry {
				span.SetStatus(codes.Error, e.Message)
				span.AddEvent("exception", trace.WithTimestamp(e.At), trace.WithAttributes(attribute.String("exception.type", e.Class), attribute.String("exception.message", e.Message)))
			}
			span.End(trace.WithTimestamp(e.At))
			begun = time.Time{}
		default: // no attempt begins or ends
		}
	}
}
