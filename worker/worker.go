// Package worker wires store, handlers, Sidekiq and River into a running
// worker. `tasker worker` is this package with flags; a program with Go
// handlers of its own calls Run itself:
//
//	handlers := handler.NewRegistry()
//	handlers.Register("billing.charge", charge)
//	err := worker.Run(ctx, worker.Config{DatabaseURL: url, Handlers: handlers,
//		Live: worker.Live{Templates: "config/tasker/tasks"}})
//
// Any number of workers share the work of one database. A worker that dies is
// found by the others, or by the next one to start, when its lease is over;
// what it held is taken up from the last commit.
package worker

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/crash"
	"github.com/taskerhq/tasker/handler"
	"github.com/taskerhq/tasker/jobs"
	"github.com/taskerhq/tasker/migrations"
	"github.com/taskerhq/tasker/orchestrator"
	"github.com/taskerhq/tasker/sidekiq"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/telemetry"
	"github.com/taskerhq/tasker/template"
	"github.com/taskerhq/tasker/webhooks"
)

// Config is what a worker needs to know. The zero value of a field means its
// default; docs/configuration.md says why it is what it is.
type Config struct {
	DatabaseURL    string
	RedisURL       string            // Sidekiq's Redis; empty: Ruby steps are not pushed
	Handlers       *handler.Registry // default: the built-in handlers, tasker.http with no host allowed
	Connections    int               // to the database, most; default 20
	ConnectTimeout time.Duration     // for the database's first answer; default 10 s
	PollOnly       bool              // the database is behind a pooler: no LISTEN, nothing kept in a session
	PollEvery      time.Duration     // with PollOnly: jobs, and reports while any are awaited; default 200 ms
	MaxTasks       int               // tasks run at once; default 500
	Lease          time.Duration     // silence after which a worker is dead; default 4 s
	Writer         store.Groups
	River          jobs.Tuning
	Redis          sidekiq.Tuning
	Listen         string // HOST:PORT of HTTP for probes; empty: none
	Token          string // that HTTP wants to see for all but probes; empty: none
	Traces         telemetry.TraceConfig
	MostLag        time.Duration // how long the first task that is due may wait before the worker is not ready; 0: for ever
	Live                         // at the start; Updates changes it
	Updates        <-chan Live
	Hurry          <-chan struct{} // closed: a worker that stops waits no longer for running handlers
	Logger         *slog.Logger
	Started        func(worker int64) // called when the worker takes tasks
}

func (c *Config) setDefaults() {
	if c.Handlers == nil {
		c.Handlers = handler.NewRegistry()
		c.Handlers.AllowHTTP()
	}
	c.Connections = cmp.Or(c.Connections, 20)
	c.ConnectTimeout = cmp.Or(c.ConnectTimeout, store.ConnectTimeout)
	c.PollEvery = cmp.Or(c.PollEvery, 200*time.Millisecond)
	c.MaxTasks = cmp.Or(c.MaxTasks, 500)
	c.Lease = cmp.Or(c.Lease, 4*time.Second)
	c.Writer = c.Writer.WithDefaults()
	c.River = c.River.WithDefaults()
	if c.PollOnly {
		c.River.Poll = c.PollEvery
	}
	c.Redis = c.Redis.WithDefaults()
	c.Traces.OneIn = cmp.Or(c.Traces.OneIn, telemetry.DefaultOneIn)
	c.Live = c.Live.WithDefaults()
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Started == nil {
		c.Started = func(int64) {}
	}
}

// Defaults is what the zero Config means.
func Defaults() Config {
	var c Config
	c.setDefaults()
	return c
}

// ErrConfig says that a setting makes no sense; the message says which.
var ErrConfig = errors.New("bad setting")

// shortestLease leaves room for a beat that comes late on a busy machine.
const shortestLease = time.Second

func (c *Config) check() error {
	switch {
	case c.MaxTasks < 1 || c.MaxTasks > 10_000:
		return fmt.Errorf("%w: max tasks is a number from 1 to 10000, not %d", ErrConfig, c.MaxTasks)
	case c.Lease < shortestLease:
		return fmt.Errorf("%w: the lease is at least %s, not %s: a worker that is only busy would count as dead", ErrConfig, shortestLease, c.Lease)
	case c.ParkAfter < 0:
		return fmt.Errorf("%w: park after is a time from 0, not %s", ErrConfig, c.ParkAfter)
	case c.Shutdown < 0:
		return fmt.Errorf("%w: the shutdown timeout is a time from 0, not %s", ErrConfig, c.Shutdown)
	}
	return nil
}

// Run works until ctx ends, then stops taking tasks, lets running Go handlers
// finish, hands back what it holds, and returns nil. An error says why it could
// not start, or could not go on.
func Run(ctx context.Context, c Config) error {
	c.setDefaults()
	if err := c.check(); err != nil {
		return err
	}
	if c.HTTP != nil {
		c.Handlers.SetHTTP(*c.HTTP)
	}
	server := store.Server{URL: c.DatabaseURL, Timeout: c.ConnectTimeout, Pooled: c.PollOnly}
	pool, err := server.Open(ctx, "tasker worker", int32(c.Connections))
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := migrations.Check(ctx, pool); err != nil {
		return err
	}
	// Heartbeats must not queue behind work. There are two connections, so that
	// one that hangs does not keep the next beat from being sent; more would
	// never be used.
	pulse, err := server.Open(ctx, "tasker worker heartbeat", 2)
	if err != nil {
		return err
	}
	defer pulse.Close()

	w := &worker{Config: c, pool: pool, store: store.New(pool), pulse: store.New(pulse), live: newLive(c.Live)}
	w.store.Groups = c.Writer
	if err := w.registerTemplates(ctx, c.Live); err != nil {
		return err
	}
	if c.RedisURL != "" {
		if w.redis, err = c.Redis.Open(c.RedisURL); err != nil {
			return err
		}
		defer w.redis.Close()
		if err := w.redis.Ping(ctx).Err(); err != nil {
			c.Logger.Error("redis is away: Go steps run, Ruby steps wait until it is back; check --redis-url and that the server runs",
				"address", w.redis.Options().Addr, "error", err)
		}
	}
	stop, err := w.serve(ctx, server)
	if err != nil {
		return err
	}
	defer stop()
	defer w.postEvents(ctx)()
	end, err := w.trace(ctx)
	if err != nil {
		return err
	}
	defer end()
	for dead := false; ; {
		err := w.session(ctx)
		switch {
		case ctx.Err() != nil || err == nil:
			return err
		case errors.Is(err, store.ErrWorkerDead):
			c.Logger.Warn("this worker was silent for so long that others took its tasks; it starts anew", "lease", c.Lease.String())
			dead = true
		case dead:
			// It was working before, so its settings are right.
			c.Logger.Error("the worker can't start anew yet; it keeps trying", "error", err)
			select {
			case <-time.After(w.live.now().RestartEvery):
			case <-ctx.Done():
				return nil
			}
		default:
			return err
		}
	}
}

type worker struct {
	Config
	pool  *pgxpool.Pool
	store *store.Store
	pulse *store.Store
	redis *redis.Client
	live  *live

	status  status
	metrics *telemetry.Metrics // nil: nobody can ask
	traces  *telemetry.Traces  // nil: nothing is traced
}

// postEvents serves webhooks until the returned function is called: those whose host this
// worker may call, and whose secret it has.
func (w *worker) postEvents(ctx context.Context) (stop func()) {
	sender := &webhooks.Sender{Store: w.store, Allow: func() []string { return w.Handlers.HTTP().Allow }, Getenv: os.Getenv, Logger: w.Logger}
	ctx, cancel := context.WithCancel(ctx)
	var posting sync.WaitGroup
	posting.Go(func() { sender.Run(ctx) })
	return func() { cancel(); posting.Wait() }
}

// trace exports traces until the returned function is called, where a collector is
// named.
func (w *worker) trace(ctx context.Context) (end func(), err error) {
	if w.Traces.Endpoint == "" {
		return func() {}, nil
	}
	if w.traces, err = telemetry.NewTraces(ctx, w.store, w.Traces, w.Logger); err != nil {
		return nil, fmt.Errorf("%w: telemetry.otlp_endpoint: %w", ErrConfig, err)
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), w.live.now().SignOff)
		defer cancel()
		if err := w.traces.Close(ctx); err != nil {
			w.Logger.Warn("the last traces are lost", "error", err)
		}
	}, nil
}

// registerTemplates puts the templates of the folder into the database. One that is refused,
// as it has changed and its version has been used, stops no worker: what is registered is
// served, and readiness says which file was refused.
func (w *worker) registerTemplates(ctx context.Context, l Live) error {
	if l.Templates == "" {
		return nil
	}
	var refused []string
	defer func() { w.status.refused.Store(&refused) }()
	loaded, err := template.LoadFolder(l.Templates, template.Options{Environment: l.Environment, Variables: l.Variables})
	if err != nil {
		return err
	}
	for _, l := range loaded {
		done, err := w.store.RegisterTemplate(ctx, l.Template, template.Checksum(l.Template))
		if _, changed := errors.AsType[*store.RefusedError](err); changed {
			w.Logger.Error("template is refused; what is registered under its version is served", "file", l.File, "error", err)
			refused = append(refused, l.File)
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", l.File, err)
		}
		crash.At(crash.TemplateRegistered)
		w.Logger.Info("template", "name", l.Template.FullName(), "steps", len(l.Template.Steps), "result", done)
		w.warnOfMissingHandlers(l.Template)
	}
	return nil
}

func (w *worker) warnOfMissingHandlers(t *tasker.Template) {
	for i := range t.Steps {
		if h := t.Steps[i].Handler; h != "" && !w.Handlers.Has(h) {
			w.Logger.Warn("this worker has no such Go handler; the step waits for one that has", "handler", h, "step", t.Steps[i].Name, "template", t.FullName())
		}
	}
}

// session is the worker under one number in tasker.workers.
func (w *worker) session(ctx context.Context) (err error) {
	host, _ := os.Hostname() // a name for people: an empty one does no harm
	name := fmt.Sprintf("%s:%d", host, os.Getpid())
	client := name + ":" + rand.Text()[:8]
	id, err := w.store.RegisterWorker(ctx, name, client, w.Lease, map[string]any{"handlers": w.Handlers.Names(), "max_tasks": w.MaxTasks})
	if err != nil {
		return err
	}
	crash.At(crash.WorkerRegistered)
	log := w.Logger.With("worker", id)

	push := orchestrator.Dispatcher(undeliverable{log})
	var pusher *sidekiq.Pusher
	if w.redis != nil {
		pusher = w.Redis.NewPusher(w.redis, log)
		push = pusher
	}
	c := orchestrator.Config{Store: w.store, Worker: id, Handlers: w.Handlers, Dispatcher: push, MaxTasks: w.MaxTasks, Logger: log, Tuning: w.live.now().Tuning}
	if w.metrics != nil {
		c.Wrote = w.metrics.Wrote
	}
	if w.traces != nil {
		c.Tracer = w.traces
	}
	o := orchestrator.New(c)
	w.status.loops.Store(o)
	known := &jobs.Known{}
	river, err := jobs.NewClient(w.pool, jobs.Config{Schema: migrations.Schema, ID: client, MaxTasks: w.MaxTasks, Runner: o, Known: known, Logger: quiet(log), PollOnly: w.PollOnly, Now: o.Now, Fetched: o.Fetched, Tuning: w.River})
	if err != nil {
		return err
	}

	background, end := context.WithCancel(context.Background())
	var services sync.WaitGroup
	services.Go(func() { w.beat(background, id, o, log) })
	if w.PollOnly {
		services.Go(func() { every(background, w.PollEvery, log, o.LookForWord) })
	} else {
		services.Go(func() { w.listen(background, id, o, log) })
	}
	services.Go(func() {
		sparely(background, w.live, func(l *Live) time.Duration { return l.CatchUpEvery }, 50, log, o.CatchUp)
	})
	if pusher != nil {
		services.Go(func() { pusher.Run(background) })
		services.Go(func() {
			everyLive(background, w.live, func(l *Live) time.Duration { return l.ClockEvery }, log, func(ctx context.Context) error { return w.consumers(ctx, pusher) })
		})
	}
	services.Go(func() {
		everyLive(background, w.live, func(l *Live) time.Duration { return l.ClockEvery }, log, func(ctx context.Context) error { return w.readClocks(ctx, log) })
	})
	services.Go(func() {
		sparely(background, w.live, func(l *Live) time.Duration { return l.AgeEvery }, 100, log, w.ageJobs)
	})
	services.Go(func() {
		everyLive(background, w.live, func(l *Live) time.Duration { return l.RepairEvery }, log, func(ctx context.Context) error { return w.repair(ctx, pusher, log) })
	})
	services.Go(func() {
		everyLive(background, w.live, func(l *Live) time.Duration { return l.RepairEvery }, log, func(ctx context.Context) error { return w.rescueUnheard(ctx, client, known, log) })
	})
	services.Go(func() {
		sparely(background, w.live, func(l *Live) time.Duration { return l.SweepEvery }, 1000, log, func(ctx context.Context) error { return w.sweep(ctx, log) })
	})
	services.Go(func() {
		sparely(background, w.live, func(l *Live) time.Duration { return l.StaleEvery }, 1000, log, func(ctx context.Context) error { return w.findStale(ctx, log) })
	})
	services.Go(func() {
		everyLive(background, w.live, func(l *Live) time.Duration { return l.RetainEvery }, log, func(ctx context.Context) error { return w.retain(ctx, log) })
	})
	services.Go(func() { w.rollUp(background, log) })
	services.Go(func() { w.follow(background, o, log) })
	services.Go(func() { w.wakeHandled(background, id, log) })
	defer func() {
		end()
		services.Wait()
		o.Close()
	}()

	if err := river.Start(background); err != nil {
		return fmt.Errorf("start River: %w", err)
	}
	log.Info("worker takes tasks", "max_tasks", w.MaxTasks, "handlers", strings.Join(w.Handlers.Names(), " "))
	w.status.takes.Store(true)
	w.Started(id)

	select {
	case <-ctx.Done():
		log.Info("worker stops: it takes no new tasks and hands back what it holds", "tasks", o.Held())
	case <-o.Abandoned():
	}
	w.status.takes.Store(false)
	return w.finish(o, river, id, log)
}

// finish ends a session: orderly, or at once when the worker was declared dead.
func (w *worker) finish(o *orchestrator.Orchestrator, river *jobs.Client, id int64, log *slog.Logger) error {
	l := w.live.now()
	patient, hurry := context.WithCancel(context.Background())
	var waiting sync.WaitGroup
	waiting.Go(func() { w.tellWhatIsWaitedFor(patient, hurry, log) })
	defer waiting.Wait()
	defer hurry() // before it is waited for
	grace, cancel := context.WithTimeout(patient, l.Shutdown)
	defer cancel()
	o.Drain(grace)
	// Handlers that don't return when their context ends get a little longer;
	// then their tasks are taken from them.
	last, cancelLast := context.WithTimeout(patient, l.Shutdown+l.ShutdownGrace)
	defer cancelLast()
	err := river.Stop(last)
	if err == nil {
		err = o.Settle(last)
	}
	if err != nil {
		log.Warn("handlers did not stop in time; their attempts run again elsewhere", "tasks", o.Held(), "error", err)
		o.Abandon(context.DeadlineExceeded)
		stopping, cancel := context.WithTimeout(context.Background(), l.SignOff)
		defer cancel()
		if err := river.StopAndCancel(stopping); err != nil {
			log.Warn("River did not stop", "error", err)
		}
	}
	select {
	case <-o.Abandoned():
		if cause := o.Cause(); errors.Is(cause, store.ErrWorkerDead) {
			return cause
		}
	default:
	}
	crash.At(crash.WorkerDrained)
	signOff, cancelSignOff := context.WithTimeout(context.Background(), l.SignOff)
	defer cancelSignOff()
	_, err = store.Patiently(signOff, func() (struct{}, error) { return struct{}{}, w.pulse.StopWorker(signOff, id) })
	if err != nil {
		return err
	}
	log.Info("worker has stopped")
	return nil
}

// tellWhatIsWaitedFor says now and then which handlers a worker that stops waits for, until
// ctx ends, and ends the waiting when it is told to hurry.
func (w *worker) tellWhatIsWaitedFor(ctx context.Context, hurry func(), log *slog.Logger) {
	const interval = 5 * time.Second
	for again := time.After(w.live.now().ShutdownGrace / 10); ; again = time.After(interval) {
		select {
		case <-again:
			if running := w.Handlers.Running(); len(running) > 0 {
				log.Info("worker waits for running handlers; a second signal ends that", "handlers", running, "at_most", w.live.now().Shutdown.String())
			}
		case <-w.Hurry:
			log.Warn("worker stops at once; attempts that are running run again elsewhere", "handlers", w.Handlers.Running())
			hurry()
			return
		case <-ctx.Done():
			return
		}
	}
}

// undeliverable stands in for Sidekiq in a worker that was given no Redis.
type undeliverable struct{ log *slog.Logger }

func (u undeliverable) Push(dispatches []tasker.Dispatch) {
	u.log.Error("a Ruby step can't be pushed: this worker has no Redis (--redis-url); a worker that has one will push it",
		"handler", dispatches[0].Handler, "task_id", dispatches[0].TaskID)
}
