// Package telemetry shows what a worker does, and what the database holds, as
// Prometheus metrics and OpenTelemetry traces.
//
// What happened to tasks and steps is counted in the database, once, from the
// events (tasker.roll_up): exact, a few seconds behind, the same from each worker that
// is asked, and without a cost to the loops. Dashboards take the maximum over the
// workers. What begins with tasker_worker_ is the worker's own.
package telemetry

import (
	"context"
	"log/slog"
	"math"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/taskerhq/tasker/store"
)

// Worker is what a worker says of itself.
type Worker struct {
	Held      func() int // tasks
	MaxTasks  int
	Takes     func() bool // whether it takes tasks
	Listening func() bool // whether it hears notifications; nil: it polls
}

// Metrics are those of one worker and its database.
type Metrics struct {
	registry *prometheus.Registry
	writes   prometheus.Histogram
	units    prometheus.Histogram
}

// NewMetrics returns the metrics of a worker. What the database holds is asked of
// the store, at most every ten seconds.
func NewMetrics(s *store.Store, w Worker, log *slog.Logger) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		writes: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "tasker_worker_write_duration_seconds", Help: "How long the transactions took that loops write together.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}),
		units: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "tasker_worker_write_tasks", Help: "How many tasks were written in one transaction.", Buckets: []float64{1, 2, 5, 10, 20, 50, 100, 200, 500, 1000},
		}),
	}
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	m.registry.MustRegister(m.writes, m.units,
		gauge("tasker_worker_tasks_held", "Tasks that the worker holds.", func() float64 { return float64(w.Held()) }),
		gauge("tasker_worker_tasks_max", "Tasks that the worker holds at most (worker.max_tasks).", func() float64 { return float64(w.MaxTasks) }),
		gauge("tasker_worker_takes_tasks", "1 while the worker takes tasks.", func() float64 { return oneIf(w.Takes()) }),
		newDatabase(s, log), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewBuildInfoCollector())
	if w.Listening != nil {
		m.registry.MustRegister(gauge("tasker_worker_listening", "1 while the worker hears notifications; 0: it polls until it does again.", func() float64 { return oneIf(w.Listening()) }))
	}
	return m
}

func oneIf(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// Wrote notes a transaction of the loops.
func (m *Metrics) Wrote(units int, took time.Duration) {
	m.writes.Observe(took.Seconds())
	m.units.Observe(float64(units))
}

// Handler answers a scrape.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second})
}

const (
	fresh  = 10 * time.Second // for how long an answer of the database is good
	asking = 5 * time.Second  // for an answer at most
	silent = 30 * time.Second // a Sidekiq process that wasn't heard of for longer doesn't count
	// mostTemplates is of how many templates there are metrics: each has some forty
	// series, and as many a step.
	mostTemplates = 500
	bucketsPerTwo = 8 // buckets of the counts within a factor of two
)

// bounds are those of histograms, in seconds: 2^first to 2^last.
const first, last = -10, 12

// database is a collector of what the database holds.
type database struct {
	store *store.Store
	log   *slog.Logger

	mu      sync.Mutex
	at      time.Time
	metrics []prometheus.Metric
	failed  bool
}

func newDatabase(s *store.Store, log *slog.Logger) *database { return &database{store: s, log: log} }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("tasker_"+name, help, labels, nil)
}

var (
	up           = desc("database_up", "1 when the database answered the last time it was asked, which happens every ten seconds at most.")
	tasksCreated = desc("tasks_created_total", "Tasks that were inserted.", "namespace", "template")
	tasksEnded   = desc("tasks_ended_total", "Tasks that ended, by the state that they ended in.", "namespace", "template", "state")
	taskDuration = desc("task_duration_seconds", "From a task's insert to its end.", "namespace", "template")
	taskWait     = desc("task_wait_seconds", "From a task's insert, or its run_at, until a worker took it.", "namespace", "template")
	attempts     = desc("attempts_total", "Attempts of steps that ended: completed, failed for good, or retried, which is failed with another to follow.", "namespace", "template", "step", "outcome")
	stepsEnded   = desc("steps_ended_otherwise_total", "Steps that ended without an attempt of theirs: cancelled, skipped, or resolved.", "namespace", "template", "step", "outcome")
	retries      = desc("steps_retried_total", "Steps that ended after more than one attempt: recovered or exhausted.", "namespace", "template", "step", "outcome")
	attemptTime  = desc("attempt_duration_seconds", "How long attempts ran.", "namespace", "template", "step")
	stepWait     = desc("step_wait_seconds", "From when a step was ready until its first attempt began.", "namespace", "template", "step")
	backoff      = desc("retry_backoff_seconds", "Waiting before another attempt, as it was decided.", "namespace", "template", "step")
	lag          = desc("counts_lag_seconds", "How far the counts are behind that these metrics of tasks and steps are made of.")
	due          = desc("tasks_due", "River jobs that may run and that no worker has fetched, counted up to 10,000.")
	dueOldest    = desc("tasks_due_oldest_seconds", "Since when the first of them may run.")
	workers      = desc("workers_alive", "Workers that are alive.")
	queued       = desc("queue_attempts", "Attempts at Sidekiq, by queue and whether they wait or run; all together counted up to 50,000.", "queue", "state")
	queueOldest  = desc("queue_oldest_seconds", "Since when the first attempt waits in a queue, about.", "queue")
	queueThreads = desc("queue_threads", "Threads of the Sidekiq processes that take from a queue.", "queue")
	gateTaken    = desc("gate_attempts", "Attempts that have passed a limit and not ended.", "scope", "name")
	gateMost     = desc("gate_attempts_max", "How many may have, at once.", "scope", "name")
	gateWaiting  = desc("gate_waiting", "Attempts in line at a limit or a pause, counted up to 10,000.", "scope", "name")
	gatePaused   = desc("gate_paused", "1 while it is paused.", "scope", "name")
	subLag       = desc("subscriber_lag_seconds", "Age of the first event that a durable subscriber has not passed.", "subscriber")
	subBehind    = desc("subscriber_behind_events", "Events between a durable subscriber and the last, wanted or not.", "subscriber")
	deadLetters  = desc("dead_letters_open", "Tasks that stand still or have failed and are listed, counted up to 10,000.")
)

// Describe implements prometheus.Collector.
func (d *database) Describe(out chan<- *prometheus.Desc) {
	for _, one := range []*prometheus.Desc{
		up, tasksCreated, tasksEnded, taskDuration, taskWait, attempts, stepsEnded, retries, attemptTime, stepWait, backoff, lag, due, dueOldest, workers,
		queued, queueOldest, queueThreads, gateTaken, gateMost, gateWaiting, gatePaused, subLag, subBehind, deadLetters,
	} {
		out <- one
	}
}

// Collect implements prometheus.Collector.
func (d *database) Collect(out chan<- prometheus.Metric) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Since(d.at) >= fresh {
		ctx, cancel := context.WithTimeout(context.Background(), asking)
		metrics, err := d.read(ctx)
		cancel()
		if err != nil {
			// The counts of before would look like a system in which nothing happens.
			metrics = nil
			if !d.failed {
				d.log.Warn("metrics of the database can't be read", "error", err)
			}
		}
		d.failed, d.metrics, d.at = err != nil, metrics, time.Now()
	}
	out <- prometheus.MustNewConstMetric(up, prometheus.GaugeValue, oneIf(!d.failed))
	for _, m := range d.metrics {
		out <- m
	}
}

// read asks for all of it.
func (d *database) read(ctx context.Context) (all []prometheus.Metric, err error) {
	add := func(desc *prometheus.Desc, kind prometheus.ValueType, value float64, labels ...string) {
		all = append(all, prometheus.MustNewConstMetric(desc, kind, value, labels...))
	}
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		add(desc, prometheus.GaugeValue, value, labels...)
	}
	totals, err := d.store.Totals(ctx)
	if err != nil {
		return nil, err
	}
	all = append(all, counted(totals)...)
	asOf, err := d.store.StatsAsOf(ctx)
	if err != nil {
		return nil, err
	}
	if !asOf.IsZero() {
		gauge(lag, max(0, time.Since(asOf).Seconds()))
	}
	b, err := d.store.Backlog(ctx)
	if err != nil {
		return nil, err
	}
	gauge(due, float64(b.Due))
	gauge(dueOldest, b.Oldest.Seconds())
	gauge(workers, float64(b.Workers))
	queues, err := d.store.QueueUses(ctx, silent)
	if err != nil {
		return nil, err
	}
	for _, q := range queues {
		gauge(queued, float64(q.Waiting), q.Name, "waiting")
		gauge(queued, float64(q.Running), q.Name, "running")
		gauge(queueOldest, q.Oldest, q.Name)
		gauge(queueThreads, float64(q.Threads), q.Name)
	}
	gates, err := d.store.GateUses(ctx)
	if err != nil {
		return nil, err
	}
	for _, g := range gates {
		gauge(gateTaken, float64(g.Taken), g.Scope, g.Name)
		if g.Most != nil {
			gauge(gateMost, float64(*g.Most), g.Scope, g.Name)
		}
		gauge(gateWaiting, float64(g.Waiting), g.Scope, g.Name)
		gauge(gatePaused, oneIf(g.Paused), g.Scope, g.Name)
	}
	subscribers, err := d.store.EventLags(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range subscribers {
		if s.Lag != nil {
			gauge(subLag, *s.Lag, s.Name)
		}
		gauge(subBehind, float64(s.Behind), s.Name)
	}
	n, err := d.store.OpenDeadLetters(ctx)
	if err != nil {
		return nil, err
	}
	gauge(deadLetters, float64(n))
	return all, nil
}

// histogram is one while it is put together.
type histogram struct {
	n       uint64
	sum     float64
	buckets [last - first + 1]uint64
}

func (h *histogram) add(t store.Total) {
	h.n += uint64(t.N)
	h.sum += t.Seconds
	// A bucket of the counts lies between two bounds, none of which is inside of it.
	at := max(0, floorDiv(t.Bucket, bucketsPerTwo)+1-first)
	if at < len(h.buckets) {
		h.buckets[at] += uint64(t.N)
	}
}

func floorDiv(a, b int) int { return int(math.Floor(float64(a) / float64(b))) }

func (h *histogram) metric(d *prometheus.Desc, labels ...string) prometheus.Metric {
	up := make(map[float64]uint64, len(h.buckets))
	var sum uint64
	for i, n := range h.buckets {
		sum += n
		up[math.Pow(2, float64(first+i))] = sum
	}
	return prometheus.MustNewConstHistogram(d, h.n, h.sum, up, labels...)
}

// counted makes metrics of totals, which come template by template.
func counted(totals []store.Total) (all []prometheus.Metric) {
	type of struct{ namespace, name, step, measure string }
	histograms := map[of]*histogram{}
	templates := map[[2]string]bool{}
	var order []of
	count := func(d *prometheus.Desc, t store.Total, labels ...string) {
		all = append(all, prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(t.N), append([]string{t.Namespace, t.Name}, labels...)...))
	}
	for _, t := range totals {
		name := [2]string{t.Namespace, t.Name}
		if !templates[name] && len(templates) == mostTemplates {
			break // in alphabetical order: the others are left out, always the same
		}
		templates[name] = true
		switch t.Measure {
		case "run", "wait", "total", "backoff":
			k := of{t.Namespace, t.Name, t.Step, t.Measure}
			if histograms[k] == nil {
				histograms[k] = &histogram{}
				order = append(order, k)
			}
			histograms[k].add(t)
		case "created":
			count(tasksCreated, t)
		case "recovered", "exhausted":
			count(retries, t, t.Step, t.Measure)
		case "completed", "failed", "retried", "cancelled", "skipped", "resolved":
			switch {
			case t.Step == "":
				count(tasksEnded, t, states[t.Measure])
			case t.Measure == "completed", t.Measure == "failed", t.Measure == "retried":
				count(attempts, t, t.Step, t.Measure)
			default:
				count(stepsEnded, t, t.Step, t.Measure)
			}
		}
	}
	for _, k := range order {
		h := histograms[k]
		switch {
		case k.step == "" && k.measure == "total":
			all = append(all, h.metric(taskDuration, k.namespace, k.name))
		case k.step == "" && k.measure == "wait":
			all = append(all, h.metric(taskWait, k.namespace, k.name))
		case k.step != "" && k.measure == "run":
			all = append(all, h.metric(attemptTime, k.namespace, k.name, k.step))
		case k.step != "" && k.measure == "wait":
			all = append(all, h.metric(stepWait, k.namespace, k.name, k.step))
		case k.measure == "backoff":
			all = append(all, h.metric(backoff, k.namespace, k.name, k.step))
		}
	}
	return all
}

// states are those that a task ends in, by what is counted.
var states = map[string]string{"completed": "complete", "failed": "error", "cancelled": "cancelled", "resolved": "resolved_manually"}
