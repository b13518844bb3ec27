package worker

// What a worker does all the time, besides running tasks.

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/taskerhq/tasker/crash"
	"github.com/taskerhq/tasker/jobs"
	"github.com/taskerhq/tasker/orchestrator"
	"github.com/taskerhq/tasker/sidekiq"
	"github.com/taskerhq/tasker/store"
)

// answers is how promptly the database answers this worker's heartbeats. They are what a
// Sidekiq process sends too: one row, by its key. Where they take long, a process that
// seems silent may only have been kept waiting.
type answers struct {
	mu     sync.Mutex
	asked  time.Time // what has not been answered yet; zero: nothing
	slowly time.Time // when the last answer came that took long, or was an error
}

// promptly is far below the silence after which a process counts as dead.
const promptly = time.Second

// ask notes a question, and the answer when that has come.
func (a *answers) ask() (answered func(error)) {
	asked := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked = asked
	return func(err error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.asked = time.Time{}
		if err != nil || time.Since(asked) > promptly {
			a.slowly = time.Now()
		}
	}
}

// prompt reports whether all answers came promptly for so long.
func (a *answers) prompt(long time.Duration) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return time.Since(a.slowly) > long && (a.asked.IsZero() || time.Since(a.asked) <= promptly)
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
		answered := w.status.answers.ask()
		p, err := w.pulse.Beat(ctx, id)
		answered(err)
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
			crash.At(crash.WorkerReaped)
			log.Warn("a worker died; its tasks go on elsewhere", "tasks", freed)
		}
		return err
	})
}

// listen keeps listening for reports.
func (w *worker) listen(ctx context.Context, id int64, o *orchestrator.Orchestrator, log *slog.Logger) {
	for ctx.Err() == nil {
		err := w.store.Listen(ctx, id, func() {
			w.status.listening.Store(true)
			if err := o.CatchUp(ctx); err != nil && ctx.Err() == nil {
				log.Warn("missed reports could not be looked up; the next round does it", "error", err)
			}
		}, o)
		w.status.listening.Store(false)
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
// time is up, and those whose process died, which then are lost. Only a database that
// has answered promptly for as long tells that a process has been silent.
func (w *worker) readClocks(ctx context.Context, log *slog.Logger) error {
	l := w.live.now()
	ctx, cancel := context.WithTimeout(ctx, l.RepairTimeout)
	defer cancel()
	silence := l.SilentProcess
	if !w.status.answers.prompt(silence) {
		silence = 0
	}
	tasks, attempts, err := w.store.ReadClocks(ctx, silence, l.HandlerWait)
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

// ageJobs moves up what has waited for long.
func (w *worker) ageJobs(ctx context.Context) error {
	l := w.live.now()
	ctx, cancel := context.WithTimeout(ctx, l.RepairTimeout)
	defer cancel()
	return w.store.AgeJobs(ctx, l.AgeAfter)
}

// rollUp adds what has happened to the counts of analytics. A share of the time is
// all that it takes, of all workers together: where there is more to do than fits,
// the counts come later.
func (w *worker) rollUp(ctx context.Context, log *slog.Logger) {
	const batch, share = 5000, 20
	var again time.Duration // when there is more
	paced(ctx, func() (time.Duration, <-chan struct{}) {
		l, changed := w.live.get()
		if again > 0 {
			return again, changed
		}
		return l.RollUpEvery, changed
	}, log, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, w.live.now().RepairTimeout)
		defer cancel()
		began := time.Now()
		read, err := w.store.RollUp(ctx, batch)
		again = 0
		if read == batch {
			again = share * time.Since(began)
		}
		return err
	})
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
	crash.At(crash.UnstartedTaken)
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

// rescueUnheard brings back jobs that River has fetched for this worker, as far as
// the table knows, and whose fetch it never heard the answer of.
func (w *worker) rescueUnheard(ctx context.Context, client string, known *jobs.Known, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, w.live.now().RepairTimeout)
	defer cancel()
	rescued, err := w.store.RescueUnheard(ctx, client, known.IDs())
	if rescued > 0 {
		log.Warn("jobs were fetched whose answer was lost with its connection; they come again", "jobs", rescued)
	}
	return err
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
	l := w.live.now()
	if err := w.store.PruneStats(ctx, l.KeepStats); err != nil {
		return err
	}
	keep := l.Retention
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
