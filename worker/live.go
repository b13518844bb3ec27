package worker

import (
	"cmp"
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/taskerhq/tasker/handler"
	"github.com/taskerhq/tasker/orchestrator"
	"github.com/taskerhq/tasker/store"
)

// Live is what may change while a worker runs. Each value that is received from
// Config.Updates replaces the one before as a whole; its folder of templates is
// registered again even where its name is the same, so that new versions are
// taken up. The zero value of a field means its default.
//
// What a worker has told others (its lease, its number of tasks) or has built
// things from (connections, River's client) is not here: that takes a new start.
type Live struct {
	orchestrator.Tuning

	Templates   string            // folder of YAML to register; empty: none
	Environment string            // whose overlays to apply to the templates
	Variables   map[string]string // that the templates may use as ${NAME}
	HTTP        *handler.HTTP     // what tasker.http may do; nil: what Handlers says

	Shutdown      time.Duration // how long running Go handlers may take when the worker stops; default 25 s
	ShutdownGrace time.Duration // how much longer those that ignore that; default 3 s
	SignOff       time.Duration // how long the last word to the database may take; default 5 s

	// Silences and intervals. Each is a trade between how soon a loss is noticed
	// and what an idle system costs.
	CatchUpEvery   time.Duration // missed notifications; default 2 s
	ClockEvery     time.Duration // deadlines, timeouts, heartbeats, silent processes; default 2 s
	AgeEvery       time.Duration // priorities that age; default 10 s
	AgeAfter       time.Duration // waiting that is worth a level of priority; default 1 min
	RepairEvery    time.Duration // lost Sidekiq jobs; default 5 s
	RepairTimeout  time.Duration // for one round of that; default 30 s
	RepairBatch    int           // most jobs that one round looks for; default 5000
	SilentProcess  time.Duration // silence after which a Sidekiq process is dead; default 10 s
	HandlerWait    time.Duration // how long an attempt waits for a Sidekiq process that has its class; default 10 m
	UnstartedFor   time.Duration // then a look into Redis is due; default 5 s
	TakenFor       time.Duration // how long a Sidekiq thread may have a job and not have started its attempts; default 1 s
	SweepEvery     time.Duration // what should never be; default 30 s
	StaleEvery     time.Duration // tasks that stand still or have failed; default 1 min
	RollUpEvery    time.Duration // the counts of analytics; default 5 s
	RetainEvery    time.Duration // partitions of the next days, and what is old; default 10 min
	RestartEvery   time.Duration // tries of a worker that was declared dead to start anew; default 1 s
	ReconnectAfter time.Duration // when the connection that listens broke; default 500 ms

	Stale     store.Staleness // defaults 1 h, 30 min, 30 min, 24 h, 0
	Retention store.Retention // default: for ever
	KeepStats time.Duration   // counts of analytics; default 90 days
}

// WithDefaults has the default in place of each zero.
func (l Live) WithDefaults() Live {
	l.Tuning = l.Tuning.WithDefaults()
	l.Shutdown = cmp.Or(l.Shutdown, 25*time.Second)
	l.ShutdownGrace = cmp.Or(l.ShutdownGrace, 3*time.Second)
	l.SignOff = cmp.Or(l.SignOff, 5*time.Second)
	l.CatchUpEvery = cmp.Or(l.CatchUpEvery, 2*time.Second)
	l.ClockEvery = cmp.Or(l.ClockEvery, 2*time.Second)
	l.AgeEvery = cmp.Or(l.AgeEvery, 10*time.Second)
	l.RollUpEvery = cmp.Or(l.RollUpEvery, 5*time.Second)
	l.KeepStats = cmp.Or(l.KeepStats, 90*24*time.Hour)
	l.AgeAfter = cmp.Or(l.AgeAfter, time.Minute)
	l.RepairEvery = cmp.Or(l.RepairEvery, 5*time.Second)
	l.RepairTimeout = cmp.Or(l.RepairTimeout, 30*time.Second)
	l.RepairBatch = cmp.Or(l.RepairBatch, 5_000)
	l.SilentProcess = cmp.Or(l.SilentProcess, 10*time.Second)
	l.HandlerWait = cmp.Or(l.HandlerWait, 10*time.Minute)
	l.UnstartedFor = cmp.Or(l.UnstartedFor, 5*time.Second)
	l.TakenFor = cmp.Or(l.TakenFor, time.Second)
	l.SweepEvery = cmp.Or(l.SweepEvery, 30*time.Second)
	l.StaleEvery = cmp.Or(l.StaleEvery, time.Minute)
	l.RetainEvery = cmp.Or(l.RetainEvery, 10*time.Minute)
	l.Stale.Pending = cmp.Or(l.Stale.Pending, time.Hour)
	l.Stale.InProgress = cmp.Or(l.Stale.InProgress, 30*time.Minute)
	l.Stale.Waiting = cmp.Or(l.Stale.Waiting, 30*time.Minute)
	l.Stale.Running = cmp.Or(l.Stale.Running, 24*time.Hour)
	l.RestartEvery = cmp.Or(l.RestartEvery, time.Second)
	l.ReconnectAfter = cmp.Or(l.ReconnectAfter, 500*time.Millisecond)
	return l
}

// live holds the Live of the moment.
type live struct {
	mu      sync.Mutex
	held    Live
	changed chan struct{} // closed when held is replaced
}

func newLive(l Live) *live { return &live{held: l, changed: make(chan struct{})} }

// get returns the values and a channel that is closed when they have changed.
// Nobody writes to them: a change is another Live.
func (l *live) get() (*Live, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	held := l.held
	return &held, l.changed
}

func (l *live) now() *Live {
	held, _ := l.get()
	return held
}

func (l *live) set(next Live) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held = next
	close(l.changed)
	l.changed = make(chan struct{})
}

// follow takes up changes until ctx ends. Templates that can't be registered
// leave those that are; the rest of the change counts all the same.
func (w *worker) follow(ctx context.Context, o *orchestrator.Orchestrator, log *slog.Logger) {
	updates := w.Updates
	for {
		select {
		case next, more := <-updates:
			if !more {
				updates = nil
				continue
			}
			next = next.WithDefaults()
			w.live.set(next)
			o.Tune(next.Tuning)
			if next.HTTP != nil {
				w.Handlers.SetHTTP(*next.HTTP)
			}
			if err := w.registerTemplates(ctx, next); err != nil && ctx.Err() == nil {
				log.Error("the templates can't be registered; those that are registered stay", "folder", next.Templates, "error", err)
			}
			log.Info("settings are taken up")
		case <-ctx.Done():
			return
		}
	}
}
