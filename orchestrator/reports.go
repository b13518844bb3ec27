package orchestrator

import (
	"context"
	"errors"
	"time"

	"github.com/taskerhq/tasker/store"
)

// Rung takes note that reports of these steps were committed. It does not
// block.
func (o *Orchestrator) Rung(steps []int64) {
	if len(steps) == 0 {
		return
	}
	select {
	case o.inbox <- steps:
	default:
		// The reader is far behind. CatchUp finds what is dropped here.
	}
}

// Completed takes note of steps that were completed.
func (o *Orchestrator) Completed(steps []store.Report) { o.deliverReports(steps, true) }

// deliverReports hands reports to the loops that wait for them. told: they come from a
// notification, not from the database.
func (o *Orchestrator) deliverReports(reports []store.Report, told bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	writers := map[int64]bool{}
	for i := range reports {
		if o.loops[reports[i].TaskID] != nil {
			writers[reports[i].TaskID] = true
		}
	}
	o.writer.Expect(len(writers)) // before any of them is woken
	for i := range reports {
		if l := o.loops[reports[i].TaskID]; l != nil {
			l.mail.put(letter{report: &reports[i], told: told})
		}
	}
}

// Changed takes note that an operator has changed a task that this worker holds.
func (o *Orchestrator) Changed(task int64) { o.deliver(task, letter{changed: true}) }

func (o *Orchestrator) deliver(task int64, l letter) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if loop := o.loops[task]; loop != nil {
		loop.mail.put(l)
	}
}

// CatchUp looks for reports and changes whose notification was missed: on a
// fresh connection, and every now and then.
func (o *Orchestrator) CatchUp(ctx context.Context) error {
	o.mu.Lock()
	known := make(map[int64]int64, len(o.loops))
	for task, l := range o.loops {
		if epoch := l.epoch.Load(); epoch > 0 {
			known[task] = epoch
		}
	}
	o.mu.Unlock()
	epochs, err := o.Store.Epochs(ctx, o.Worker)
	if err != nil {
		return err
	}
	for task, epoch := range known {
		if now, owned := epochs[task]; !owned || int64(now) != epoch {
			o.Changed(task)
		}
	}
	if err := o.releaseOrphans(ctx, epochs); err != nil {
		return err
	}
	return o.LookForWord(ctx)
}

// LookForWord looks for reports and admissions that nobody has told of. It asks
// nothing while none are awaited.
func (o *Orchestrator) LookForWord(ctx context.Context) error {
	if o.gates.Load().Version > 0 {
		admitted, err := o.Store.AdmittedTasks(ctx, o.Worker)
		if err != nil {
			return err
		}
		for _, task := range admitted {
			o.Admitted(task)
		}
	}
	o.mu.Lock()
	waiting := make([]int64, 0, len(o.awaiting))
	for step := range o.awaiting {
		waiting = append(waiting, step)
	}
	o.mu.Unlock()
	if len(waiting) == 0 {
		return nil
	}
	out, err := o.Store.Awaited(ctx, o.Worker)
	if err != nil {
		return err
	}
	var missed []int64
	for _, step := range waiting {
		if !out[step] {
			missed = append(missed, step)
		}
	}
	o.Rung(missed)
	return nil
}

// releaseOrphans gives up tasks that this worker owns and runs no loop for: the
// loop ended in an error, and could not even give the task up. Such a task has
// to be seen in two rounds with the same epoch, as loops come and go.
func (o *Orchestrator) releaseOrphans(ctx context.Context, epochs map[int64]int) error {
	seen := map[int64]int{}
	o.mu.Lock()
	for task, epoch := range epochs {
		if o.loops[task] == nil {
			seen[task] = epoch
		}
	}
	before := o.orphans
	o.orphans = seen
	o.mu.Unlock()
	for task, epoch := range seen {
		if before[task] != epoch {
			continue
		}
		o.Logger.Warn("a task had no loop any more; it is given to whoever is next", "task_id", task)
		err := o.writer.Write(ctx, &store.Unit{Task: task, Epoch: epoch, Release: true, Rerun: new(time.Duration)})
		if err != nil && !errors.Is(err, store.ErrStale) {
			return err
		}
	}
	return nil
}

// readReports reads what the bell rang for, all that has come together at once,
// and hands it to the loops.
func (o *Orchestrator) readReports() {
	for {
		var steps []int64
		select {
		case steps = <-o.inbox:
		case <-o.ctx.Done():
			return
		}
		for more := true; more; {
			select {
			case next := <-o.inbox:
				steps = append(steps, next...)
			default:
				more = false
			}
		}
		reports, err := store.Patiently(o.ctx, func() ([]store.Report, error) { return o.Store.Reports(o.ctx, steps) })
		if err != nil {
			if o.ctx.Err() == nil {
				o.Logger.Error("reports can't be read; they are looked for again", "error", err)
			}
			continue
		}
		o.deliverReports(reports, false)
	}
}

// await and settle keep the set of attempts that are out at Sidekiq.
func (o *Orchestrator) await(steps []int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range steps {
		o.awaiting[s] = true
	}
}

func (o *Orchestrator) settle(steps ...int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range steps {
		delete(o.awaiting, s)
	}
}

// until is a timer for a time that may be zero: never.
func until(at, now time.Time) (<-chan time.Time, func() bool) {
	if at.IsZero() {
		return nil, func() bool { return true }
	}
	t := time.NewTimer(at.Sub(now))
	return t.C, t.Stop
}
