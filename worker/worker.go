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
	"github.com/taskerhq/tasker/handler"
	"github.com/taskerhq/tasker/jobs"
	"github.com/taskerhq/tasker/migrations"
	"github.com/taskerhq/tasker/orchestrator"
	"github.com/taskerhq/tasker/sidekiq"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/template"
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
	Live           // at the start; Updates changes it
	Updates        <-chan Live
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
}

func (w *worker) registerTemplates(ctx context.Context, l Live) error {
	if l.Templates == "" {
		return nil
	}
	loaded, err := template.LoadFolder(l.Templates, template.Options{Environment: l.Environment, Variables: l.Variables})
	if err != nil {
		return err
	}
	for _, l := range loaded {
		done, err := w.store.RegisterTemplate(ctx, l.Template, template.Checksum(l.Template))
		if err != nil {
			return fmt.Errorf("%s: %w", l.File, err)
		}
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
	log := w.Logger.With("worker", id)

	push := orchestrator.Dispatcher(undeliverable{log})
	var pusher *sidekiq.Pusher
	if w.redis != nil {
		pusher = w.Redis.NewPusher(w.redis, log)
		push = pusher
	}
	o := orchestrator.New(orchestrator.Config{
		Store: w.store, Worker: id, Handlers: w.Handlers, Dispatcher: push, MaxTasks: w.MaxTasks, Logger: log, Tuning: w.live.now().Tuning,
	})
	river, err := jobs.NewClient(w.pool, jobs.Config{Schema: migrations.Schema, ID: client, MaxTasks: w.MaxTasks, Runner: o, Logger: quiet(log), PollOnly: w.PollOnly, Tuning: w.River})
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
		everyLive(background, w.live, func(l *Live) time.Duration { return l.CatchUpEvery }, log, o.CatchUp)
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
		everyLive(background, w.live, func(l *Live) time.Duration { return l.RepairEvery }, log, func(ctx context.Context) error { return w.repair(ctx, pusher, log) })
	})
	services.Go(func() {
		sparely(background, w.live, func(l *Live) time.Duration { return l.SweepEvery }, log, func(ctx context.Context) error { return w.sweep(ctx, log) })
	})
	services.Go(func() {
		sparely(background, w.live, func(l *Live) time.Duration { return l.StaleEvery }, log, func(ctx context.Context) error { return w.findStale(ctx, log) })
	})
	services.Go(func() {
		everyLive(background, w.live, func(l *Live) time.Duration { return l.RetainEvery }, log, func(ctx context.Context) error { return w.retain(ctx, log) })
	})
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
	w.Started(id)

	select {
	case <-ctx.Done():
		log.Info("worker stops: it takes no new tasks and hands back what it holds", "tasks", o.Held())
	case <-o.Abandoned():
	}
	return w.finish(o, river, id, log)
}

// finish ends a session: orderly, or at once when the worker was declared dead.
func (w *worker) finish(o *orchestrator.Orchestrator, river *jobs.Client, id int64, log *slog.Logger) error {
	l := w.live.now()
	grace, cancel := context.WithTimeout(context.Background(), l.Shutdown)
	defer cancel()
	o.Drain(grace)
	// Handlers that don't return when their context ends get a little longer;
	// then their tasks are taken from them.
	last, cancelLast := context.WithTimeout(context.Background(), l.Shutdown+l.ShutdownGrace)
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
	signOff, cancelSignOff := context.WithTimeout(context.Background(), l.SignOff)
	defer cancelSignOff()
	_, err = store.Patiently(signOff, func() (struct{}, error) { return struct{}{}, w.pulse.StopWorker(signOff, id) })
	if err != nil {
		return err
	}
	log.Info("worker has stopped")
	return nil
}

// beat says four times per lease that this worker lives, and finds others that
// don't. A worker judges nobody in the first lease after it started or was
// silent itself: then the others may only have been cut off together with it,
// and get the time to say so.
func (w *worker) beat(ctx context.Context, id int64, o *orchestrator.Orchestrator, log *slog.Logger) {
	judges := time.Now().Add(w.Lease)
	// Jobs for later are rung for when they are due: River would find them with its
	// next poll only.
	alarm := time.AfterFunc(time.Hour, func() {
		if err := w.pulse.Ring(ctx); err != nil && ctx.Err() == nil {
			log.Debug("jobs that are due wait for River's poll", "error", err)
		}
	})
	defer alarm.Stop()
	every(ctx, w.Lease/4, log, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, w.Lease)
		defer cancel()
		p, err := w.pulse.Beat(ctx, id)
		if errors.Is(err, store.ErrWorkerDead) {
			o.Abandon(err)
			return nil
		}
		if err == nil {
			o.SetClock(p.Now)
			o.SetPlace(p.Place, p.Workers)
			if p.Due > 0 && p.Due < w.Lease/4 { // else the next beat says so again
				alarm.Reset(p.Due)
			}
		}
		if p.Silent > w.Lease/2 {
			judges = time.Now().Add(w.Lease)
		}
		if err != nil || !p.Suspect || time.Now().Before(judges) {
			return err
		}
		freed, err := w.pulse.ReapWorker(ctx)
		if freed > 0 {
			log.Warn("a worker died; its tasks go on elsewhere", "tasks", freed)
		}
		return err
	})
}

// listen keeps listening for reports.
func (w *worker) listen(ctx context.Context, id int64, o *orchestrator.Orchestrator, log *slog.Logger) {
	for ctx.Err() == nil {
		err := w.store.Listen(ctx, id, func() {
			if err := o.CatchUp(ctx); err != nil && ctx.Err() == nil {
				log.Warn("missed reports could not be looked up; the next round does it", "error", err)
			}
		}, o)
		if ctx.Err() != nil {
			return
		}
		log.Warn("the connection that listens for reports broke; until it is back they are polled for", "error", err)
		select {
		case <-time.After(w.live.now().ReconnectAfter):
		case <-ctx.Done():
		}
	}
}

// readClocks ends tasks whose deadline has passed, attempts of Ruby steps whose
// time is up, and those whose process died, which then are lost.
func (w *worker) readClocks(ctx context.Context, log *slog.Logger) error {
	l := w.live.now()
	ctx, cancel := context.WithTimeout(ctx, l.RepairTimeout)
	defer cancel()
	tasks, attempts, err := w.store.ReadClocks(ctx, l.SilentProcess, l.AgeAfter)
	if err != nil {
		return err
	}
	if tasks > 0 {
		log.Warn("tasks have passed their deadline and are in error", "tasks", tasks)
	}
	if attempts > 0 {
		log.Warn("attempts of Ruby steps were lost with their process, or took too long", "attempts", attempts)
	}
	return nil
}

// wakeHandled has tasks looked at that were given up for want of a handler which
// this worker has: at once, and again when every worker has heard of it, and the
// one that had the handler before, if it crashed, is known to be dead.
func (w *worker) wakeHandled(ctx context.Context, id int64, log *slog.Logger) {
	for _, pause := range []time.Duration{0, 2*w.Lease + w.live.now().AskAgain} {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		woken, err := w.store.WakeHandled(ctx, id)
		if err != nil && ctx.Err() == nil {
			log.Warn("tasks that wait for this worker's handlers can't be woken; they come by themselves, later", "error", err)
		}
		if woken > 0 {
			log.Info("tasks that waited for this worker's handlers go on", "tasks", woken)
		}
	}
}

// repair finds attempts whose job is in no queue though nobody has started it,
// and pushes them again: the fence lets only one copy start.
func (w *worker) repair(ctx context.Context, pusher *sidekiq.Pusher, log *slog.Logger) error {
	if pusher == nil {
		return nil
	}
	l := w.live.now()
	ctx, cancel := context.WithTimeout(ctx, l.RepairTimeout)
	defer cancel()
	unstarted, err := w.store.TakeUnstarted(ctx, l.UnstartedFor, l.RepairBatch)
	if err != nil || len(unstarted) == 0 {
		return err
	}
	missing, err := pusher.Missing(ctx, unstarted)
	if err != nil || len(missing) == 0 {
		return err
	}
	// In no queue, too, is what a Sidekiq thread has just taken, and what rides
	// with others there; in a moment it will have started.
	select {
	case <-time.After(l.TakenFor):
	case <-ctx.Done():
		return nil
	}
	if missing, err = w.store.StillUnstarted(ctx, missing); err != nil || len(missing) == 0 {
		return err
	}
	log.Warn("jobs were in no queue any more and are pushed again", "attempts", len(missing))
	pusher.Push(missing)
	return nil
}

// consumers tells the pusher who takes its jobs, while it pushes any.
func (w *worker) consumers(ctx context.Context, pusher *sidekiq.Pusher) error {
	if !pusher.Used() {
		return nil
	}
	l := w.live.now()
	ctx, cancel := context.WithTimeout(ctx, l.RepairTimeout)
	defer cancel()
	processes, err := w.store.Processes(ctx, l.SilentProcess)
	if err != nil {
		return err
	}
	consumers := make([]sidekiq.Consumer, len(processes))
	for i, p := range processes {
		consumers[i] = sidekiq.Consumer{Queues: p.Queues, Concurrency: p.Concurrency, Bundles: p.Bundles, Takes: make(map[string]time.Duration, len(p.Seconds))}
		for handler, seconds := range p.Seconds {
			consumers[i].Takes[handler] = time.Duration(seconds * float64(time.Second))
		}
	}
	pusher.SetConsumers(consumers)
	return nil
}

// sweep casts the last net.
func (w *worker) sweep(ctx context.Context, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, w.live.now().RepairTimeout)
	defer cancel()
	found, err := w.store.Sweep(ctx)
	if found > 0 {
		log.Error("tasks were found that nothing would have brought back; they go on. Please report this", "tasks", found)
	}
	return err
}

// findStale lists tasks that stand still, and tasks that failed.
func (w *worker) findStale(ctx context.Context, log *slog.Logger) error {
	l := w.live.now()
	ctx, cancel := context.WithTimeout(ctx, l.RepairTimeout)
	defer cancel()
	found, err := w.store.FindStale(ctx, l.Stale)
	if found > 0 {
		log.Warn("tasks have failed, or nothing has happened to them for long; see: tasker dead-letter list", "tasks", found)
	}
	return err
}

// retain makes the event partitions of the next days, and removes what is older
// than is asked for. It is done by one worker at a time.
func (w *worker) retain(ctx context.Context, log *slog.Logger) error {
	if err := w.store.KeepEventDays(ctx); err != nil {
		return err
	}
	keep := w.live.now().Retention
	var tasks int64
	var days int
	err := w.store.Prune(ctx, keep, store.PruneOptions{}, func(p store.Pruned) {
		tasks += p.Tasks
		if p.Bytes > 0 {
			days++
		}
	})
	if tasks > 0 || days > 0 {
		log.Info("what is older than retention says is removed", "tasks", tasks, "event_partitions", days)
	}
	if errors.Is(err, store.ErrPruning) {
		return nil // another worker does it
	}
	return err
}

// undeliverable stands in for Sidekiq in a worker that was given no Redis.
type undeliverable struct{ log *slog.Logger }

func (u undeliverable) Push(dispatches []tasker.Dispatch) {
	u.log.Error("a Ruby step can't be pushed: this worker has no Redis (--redis-url); a worker that has one will push it",
		"handler", dispatches[0].Handler, "task_id", dispatches[0].TaskID)
}
