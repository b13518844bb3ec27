package orchestrator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/crash"
	"github.com/taskerhq/tasker/dag"
	"github.com/taskerhq/tasker/finalizer"
	"github.com/taskerhq/tasker/store"
)

// loop is the orchestration loop over one task. Everything but mail, again and
// awaited belongs to its goroutine.
type loop struct {
	o       *Orchestrator
	id      int64
	mail    mailbox
	again   bool // guarded by o.mu: another River job asked for this task meanwhile
	awaited bool // guarded by o.mu: the job that its visit was begun for has come
	relies  bool // on the job that its visit was begun for: it may have to be looked at when that comes
	visit   *visit
	epoch   atomic.Int64 // of task, for others to compare; 0: not claimed yet

	refusals int // writes refused in a row

	changed bool // somebody else has changed the task
	paused  bool

	task     *store.Claimed
	template *compiled
	steps    []step
	progress *dag.Progress
	position map[int64]int // step id → position
	running  map[int]running
	fresh    []int                   // positions with news
	inLine   int                     // how many steps stand in line at a gate
	results  map[int]json.RawMessage // of finished steps that pending Go steps need
	uses     []int32                 // per step: how many pending Go steps need its result
	quiet    time.Time               // since when nothing has happened
}

// running is an attempt of a Go step in this process.
type running struct {
	attempt   int
	cancel    context.CancelFunc
	deadline  time.Time     // zero: none
	heartbeat time.Duration // the longest time between two; 0: none are asked for
	heart     *heart
}

// step is what a loop knows of a step besides its state, which progress holds.
type step struct {
	id       int64
	attempt  int
	losses   int
	forgiven int
	delay    time.Duration    // in waiting_for_retry: as decided
	due      time.Time        // in waiting_for_retry: when the delay is over, by this process's clock
	out      bool             // the current attempt is at Sidekiq
	ticket   int64            // of that attempt; 0: it has none
	inLine   bool             // its claim was denied: it waits for its turn at a gate
	before   tasker.StepState // of a claim that is being written: the state before
	progress json.RawMessage  // what the last heartbeat of an attempt here, or before, carried
	news     *outcome         // the attempt's outcome is in, and not yet written
}

// outcome is how the current attempt of a step ended.
type outcome struct {
	kind    finalizer.Outcome
	result  json.RawMessage
	failure *tasker.Failure
}

// action is what a decision sets in motion once it is committed.
type action struct {
	starts []int // positions whose claimed attempt begins
	done   bool  // the loop gives the task up with this write
	again  bool  // there is more to decide as soon as this is committed
	ring   bool  // another worker is to fetch the task as soon as it is due
}

func newLoop(o *Orchestrator, task int64, v *visit) *loop {
	return &loop{o: o, id: task, visit: v, relies: true, mail: newMailbox(), running: map[int]running{}, results: map[int]json.RawMessage{}}
}

// runSafely turns a panic of the loop into an error. It is a bug in here; its
// task must not stay owned by a loop that is gone.
func (l *loop) runSafely() (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = l.giveUp(fmt.Errorf("its loop panicked: %v\n%s", p, debug.Stack()))
		}
	}()
	return l.run()
}

func (l *loop) run() error {
	if err := l.claim(); err != nil || l.progress == nil {
		return err
	}
	defer l.leave()
	if err := l.open(); err != nil {
		return err
	}
	for {
		now := time.Now()
		l.read(now)
		if l.changed {
			if err := l.reload(); err != nil {
				return err
			}
		}
		l.expire(now)
		unit, act := l.decide(now)
		if err := l.write(unit); err != nil {
			if again, err := l.recover(err, unit); !again {
				return err
			}
			l.hesitate()
			continue
		}
		l.refusals = 0
		if unit.State != "" && unit.State.Finished() && l.o.Tracer != nil {
			l.o.Tracer.Ended(l.task)
		}
		if act.ring {
			l.o.ringAfter(*unit.Rerun)
		}
		l.deny(&act, unit.Denied)
		l.forget()
		if err := l.act(act); err != nil || act.done {
			crash.At(crash.TaskLetGo)
			return err
		}
		if act.again {
			continue
		}
		if err := l.wait(); err != nil {
			return err
		}
	}
}

// claim makes this worker the task's owner and builds the loop's view. There is
// no view afterwards when there is nothing to own.
func (l *loop) claim() error {
	claimed, err := store.Patiently(l.o.ctx, func() (*store.Claimed, error) { return l.o.claimer.Claim(l.o.ctx, l.id) })
	if err != nil || claimed == nil {
		return err
	}
	crash.At(crash.TaskClaimed)
	l.relies = false
	l.task = claimed
	l.epoch.Store(int64(claimed.Epoch))
	if l.template, err = l.o.template(claimed.TemplateID); err != nil {
		return l.giveUp(err)
	}
	l.o.used(l.template)
	l.see(claimed.Steps)
	claimed.Steps = nil
	l.quiet = time.Now()
	return nil
}

// open starts what was claimed together with the task.
func (l *loop) open() error {
	if !l.task.Begun {
		return nil
	}
	for _, i := range l.template.roots {
		state := tasker.StepInProgress
		if l.template.Steps[i].HandlerClass != "" {
			state = tasker.StepEnqueued
			l.steps[i].ticket = l.o.ticket(l.steps[i].id, 1)
		}
		l.claimed(i, state)
	}
	return l.act(action{starts: l.template.roots})
}

// recover deals with a write that was refused, and says whether the loop goes
// on with a new view.
func (l *loop) recover(err error, unit *store.Unit) (again bool, _ error) {
	if errors.Is(err, store.ErrGatesChanged) { // and so an ErrStale
		if err := l.o.refreshGates(); err != nil {
			return false, err
		}
	}
	var refused *store.RefusedError
	switch {
	case errors.Is(err, store.ErrStale), errors.As(err, &refused) && l.rejectResults(unit):
		err := l.reload()
		return err == nil, err
	case errors.Is(err, store.ErrWorkerDead) || l.o.ctx.Err() != nil:
		return false, err
	}
	return false, l.giveUp(err)
}

// giveUp lets go of a task that the loop can't move for a reason that nothing
// it knows would mend. Better to try again later than to keep it.
func (l *loop) giveUp(reason error) error {
	later := l.o.tuning().GiveUpFor
	l.log().Error("task is given up for a while", "for", later.String(), "error", reason)
	if l.task == nil {
		return reason
	}
	for {
		err := l.o.writer.Write(l.o.ctx, &store.Unit{Task: l.id, Epoch: l.task.Epoch, Release: true, Rerun: &later})
		if !errors.Is(err, store.ErrStale) {
			return err
		}
		// An operator may have given it a new epoch.
		held, readErr := store.Patiently(l.o.ctx, func() (*store.Held, error) { return l.o.Store.Reread(l.o.ctx, l.o.Worker, l.id) })
		if readErr != nil {
			return readErr
		}
		l.task.Epoch = held.Epoch
		l.hesitate()
	}
}

// hesitate waits before a write is tried anew that was refused more than once in
// a row: what stands in its way is somebody's open transaction.
func (l *loop) hesitate() {
	l.refusals++
	if l.refusals < 2 {
		return
	}
	select {
	case <-time.After(min(5*time.Millisecond<<min(l.refusals, 10), l.o.tuning().BlockedFor)):
	case <-l.mail.signal:
	case <-l.o.ctx.Done():
	}
}

// rejectResults makes failures of those results in a refused write that
// Postgres won't take (a number out of jsonb's range, say). It returns false
// when there is none, so that the refusal has another reason.
func (l *loop) rejectResults(unit *store.Unit) bool {
	found := false
	for _, w := range unit.Steps {
		if w.Result == nil {
			continue
		}
		err := l.o.Store.CheckResult(l.o.ctx, w.Result)
		var refused *store.RefusedError
		if !errors.As(err, &refused) {
			continue
		}
		i := l.position[w.Step]
		l.steps[i].news = &outcome{kind: finalizer.Failed, failure: &tasker.Failure{
			Class: "Result", Code: tasker.CodeResultNotSerializable, Permanent: true, Handler: l.template.Steps[i].Handler,
			Message: "Postgres refuses the result: " + refused.Error(),
		}}
		found = true
	}
	return found
}

// reload forgets the view and reads the task again.
func (l *loop) reload() error {
	l.changed = false
	held, err := store.Patiently(l.o.ctx, func() (*store.Held, error) {
		return l.o.Store.Reread(l.o.ctx, l.o.Worker, l.id)
	})
	if err != nil {
		return err
	}
	l.task.Epoch, l.task.Context, l.task.KeySeed, l.paused = held.Epoch, held.Context, held.KeySeed, held.Paused
	l.epoch.Store(int64(held.Epoch))
	l.log().Debug("task read again")
	clear(l.results)
	l.see(held.Steps)
	l.quiet = time.Now() // what was refused may be refused again: not at once
	return nil
}

// log is the logger for lines about this task.
func (l *loop) log() *slog.Logger {
	log := l.o.Logger.With("task_id", l.id)
	if l.task != nil && l.task.CorrelationID != "" {
		log = log.With("correlation_id", l.task.CorrelationID)
	}
	return log
}

func (l *loop) write(unit *store.Unit) error {
	if len(unit.Steps) == 0 && !unit.Release {
		return nil
	}
	if unit.Rerun != nil {
		// A job that is due by then will do, says the function: that of this visit, if
		// nobody has fetched it yet.
		l.o.mu.Lock()
		l.relies = !l.awaited
		l.o.mu.Unlock()
	}
	return l.o.writer.Write(l.o.ctx, unit)
}

// forget drops the outcomes that the committed write has settled. Delays count
// from here, so that no attempt begins before the retry_at that was written.
func (l *loop) forget() {
	now := time.Now()
	for _, i := range l.fresh {
		s := &l.steps[i]
		s.due = now.Add(s.delay)
		if s.news != nil && s.out {
			l.o.settle(s.id)
			s.out = false
		}
		s.news = nil
	}
	if len(l.fresh) > 0 {
		l.o.openGates()
	}
	l.fresh = l.fresh[:0]
}

// wait returns when there is something to decide.
func (l *loop) wait() error {
	draining := l.o.draining
	if l.drains() {
		draining = nil // known already, or, when paused, of no importance
		if len(l.running) == 0 {
			return nil
		}
	}
	wake, stop := until(l.next(), time.Now())
	defer stop()
	select {
	case <-l.mail.signal:
	case <-wake:
	case <-draining:
	case <-l.o.ctx.Done():
		return context.Cause(l.o.ctx)
	}
	return nil
}

// next is when the loop has to look at its task again without being told: a
// retry is due and may start, or it is time to park.
func (l *loop) next() time.Time {
	var at time.Time
	if l.room() > 0 && l.mayStart() {
		for _, i := range l.progress.Retryable() {
			if due := l.steps[i].due; !l.foreign(i) && !l.steps[i].inLine && (at.IsZero() || due.Before(at)) {
				at = due
			}
		}
	}
	if l.progress.Outstanding()+l.inLine > 0 && len(l.running) == 0 {
		// Looked at again and again: places may have become scarce.
		every := max(l.o.tuning().ParkAfter, time.Millisecond)
		if look := l.quiet.Add(time.Since(l.quiet).Truncate(every) + every); at.IsZero() || look.Before(at) {
			at = look
		}
	}
	for _, r := range l.running {
		for _, end := range []time.Time{r.deadline, r.due()} {
			if !end.IsZero() && (at.IsZero() || end.Before(at)) {
				at = end
			}
		}
	}
	return at
}

// leave lets go of everything when the loop ends, however it ends.
func (l *loop) leave() {
	for _, r := range l.running {
		r.cancel()
	}
	var out []int64
	for i := range l.steps {
		if l.steps[i].out {
			out = append(out, l.steps[i].id)
		}
	}
	l.o.settle(out...)
}
