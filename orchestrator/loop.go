package orchestrator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/dag"
	"github.com/taskerhq/tasker/finalizer"
	"github.com/taskerhq/tasker/store"
)

// loop is the orchestration loop over one task. Everything but mail and again
// belongs to its goroutine.
type loop struct {
	o     *Orchestrator
	id    int64
	mail  mailbox
	again bool         // guarded by o.mu: another River job asked for this task meanwhile
	epoch atomic.Int64 // of task, for others to compare; 0: not claimed yet

	changed bool // somebody else has changed the task
	paused  bool

	task     *store.Claimed
	template *compiled
	steps    []step
	progress *dag.Progress
	position map[int64]int // step id → position
	running  map[int]running
	fresh    []int                   // positions with news
	results  map[int]json.RawMessage // of finished steps that pending Go steps need
	uses     []int32                 // per step: how many pending Go steps need its result
	quiet    time.Time               // since when nothing has happened
}

// running is an attempt of a Go step in this process.
type running struct {
	attempt  int
	cancel   context.CancelFunc
	deadline time.Time // zero: none
}

// indulgence is how much longer than its timeout a handler may take to notice
// that its context has ended. Then its attempt has failed without it.
const indulgence = 5 * time.Second

// step is what a loop knows of a step besides its state, which progress holds.
type step struct {
	id       int64
	attempt  int
	losses   int
	forgiven int
	delay    time.Duration // in waiting_for_retry: as decided
	due      time.Time     // in waiting_for_retry: when the delay is over, by this process's clock
	out      bool          // the current attempt is at Sidekiq
	news     *outcome      // the attempt's outcome is in, and not yet written
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
}

func newLoop(o *Orchestrator, task int64) *loop {
	return &loop{o: o, id: task, mail: newMailbox(), running: map[int]running{}, results: map[int]json.RawMessage{}}
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
			continue
		}
		l.forget()
		if err := l.act(act); err != nil || act.done {
			return err
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
	l.task = claimed
	l.epoch.Store(int64(claimed.Epoch))
	if l.template, err = l.o.template(claimed.TemplateID); err != nil {
		return l.giveUp(err)
	}
	l.see(claimed.Steps)
	claimed.Steps = nil
	l.quiet = time.Now()
	return nil
}

// recover deals with a write that was refused, and says whether the loop goes
// on with a new view.
func (l *loop) recover(err error, unit *store.Unit) (again bool, _ error) {
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
	l.o.Logger.Error("task is given up for a minute", "task_id", l.id, "error", reason)
	if l.task == nil {
		return reason
	}
	return l.o.writer.Write(l.o.ctx, &store.Unit{Task: l.id, Epoch: l.task.Epoch, Release: true, Rerun: new(time.Minute)})
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
	l.task.Epoch, l.paused = held.Epoch, held.Paused
	l.epoch.Store(int64(held.Epoch))
	l.o.Logger.Debug("task read again", "task_id", l.id)
	clear(l.results)
	l.see(held.Steps)
	l.quiet = time.Now() // what was refused may be refused again: not at once
	return nil
}

// see builds the view from rows. Of what it knew before, it keeps the attempts
// that it runs itself and outcomes that are still to be written.
func (l *loop) see(rows []store.StepRow) {
	now := time.Now()
	before := l.steps
	for i := range before {
		if before[i].out {
			l.o.settle(before[i].id)
		}
	}
	l.steps = make([]step, len(rows))
	l.position = make(map[int64]int, len(rows))
	l.fresh = l.fresh[:0]
	l.uses = make([]int32, len(rows))
	states := make([]tasker.StepState, len(rows))
	var out []int64
	for i, row := range rows {
		s := step{id: row.StepID, attempt: row.Attempts, losses: row.Losses, forgiven: row.Forgiven}
		states[i] = row.State
		l.position[row.StepID] = i
		var known *outcome
		same := before != nil && before[i].attempt == row.Attempts
		if same {
			known = before[i].news
		}
		mine := l.running[i].attempt == row.Attempts
		if row.State == tasker.StepPending && l.template.Steps[i].Handler != "" {
			for _, d := range l.template.graph.Dependencies(i) {
				l.uses[d]++
			}
		}
		switch {
		case row.State == tasker.StepWaitingForRetry:
			s.due = now.Add(row.RetryIn)
		case !row.State.Outstanding():
		case l.template.Steps[i].Handler != "":
			if s.news = known; known == nil && !mine {
				// Claimed by an owner that is gone, or by a write of ours whose
				// answer was lost before the handler was started.
				s.news = &outcome{kind: finalizer.Lost}
			}
		case row.Failure != nil:
			s.out, s.news = true, reported(row.Failure)
		case row.Dispatched:
			s.out = true
			out = append(out, s.id)
		default:
			s.news = &outcome{kind: finalizer.Lost} // no dispatch knows of it, so nothing would ever report
		}
		if r, ok := l.running[i]; ok && !(mine && row.State == tasker.StepInProgress) {
			r.cancel() // its result can't be accepted any more
			delete(l.running, i)
		}
		if s.news != nil {
			l.fresh = append(l.fresh, i)
		}
		l.steps[i] = s
	}
	l.progress = dag.NewProgress(l.template.graph, states)
	l.o.await(l.id, out)
}

// read opens the mail.
func (l *loop) read(now time.Time) {
	for _, letter := range l.mail.take() {
		l.quiet = now
		if e := letter.ended; e != nil {
			if r, ok := l.running[e.position]; ok && r.attempt == e.attempt {
				r.cancel()
				delete(l.running, e.position)
			}
			s := &l.steps[e.position]
			if s.attempt != e.attempt || l.progress.State(e.position) != tasker.StepInProgress {
				continue // given up meanwhile
			}
			l.fresh = append(l.fresh, e.position)
			switch {
			case e.lost:
				s.news = &outcome{kind: finalizer.Lost}
			case e.failure != nil:
				s.news = &outcome{kind: finalizer.Failed, failure: e.failure}
			default:
				s.news = &outcome{kind: finalizer.Succeeded, result: e.result}
			}
			continue
		}
		if letter.changed {
			l.changed = true
			continue
		}
		r := letter.report
		i, ok := l.position[r.StepID]
		if !ok || l.steps[i].attempt != r.Attempts || l.steps[i].news != nil {
			continue
		}
		switch {
		case r.Failure != nil && r.State.Outstanding():
			l.progress.Set(i, r.State) // started meanwhile, or not
			l.steps[i].news = reported(r.Failure)
			l.fresh = append(l.fresh, i)
		case !r.State.Outstanding() && r.State != l.progress.State(i):
			l.progress.Set(i, r.State)
			l.steps[i].out = false
			l.o.settle(r.StepID)
		}
	}
}

// expire fails the attempts whose handlers ignore that their time is up. When
// such a handler returns after all, its attempt is not the current one.
func (l *loop) expire(now time.Time) {
	for i, r := range l.running {
		if r.deadline.IsZero() || now.Before(r.deadline) {
			continue
		}
		delete(l.running, i)
		r.cancel()
		spec := &l.template.Steps[i]
		l.steps[i].news = &outcome{kind: finalizer.Failed, failure: &tasker.Failure{
			Class: tasker.CodeAttemptTimeout, Code: tasker.CodeAttemptTimeout, Handler: spec.Handler,
			Message: fmt.Sprintf("no result after %s (timeout_seconds of the step), and the handler goes on although its context has ended", spec.Timeout.Duration()),
		}}
		l.fresh = append(l.fresh, i)
	}
}

// reported reads the failure that a process reported.
func reported(doc json.RawMessage) *outcome {
	var f struct {
		tasker.Failure
		Lost bool `json:"lost"`
	}
	if err := json.Unmarshal(doc, &f); err != nil {
		f.Failure = tasker.Failure{Class: "MalformedFailure", Message: "the process reported a failure that can't be read: " + err.Error(), Context: doc}
	}
	if f.Lost {
		return &outcome{kind: finalizer.Lost}
	}
	return &outcome{kind: finalizer.Failed, failure: &f.Failure}
}

// decide works out the next write: outcomes that are in, attempts to start, and
// what becomes of the task. It moves the view ahead; if the write is refused,
// reload puts it back.
func (l *loop) decide(now time.Time) (*store.Unit, action) {
	unit := &store.Unit{Task: l.id, Epoch: l.task.Epoch}
	slices.Sort(l.fresh)
	l.decideOutcomes(unit, now)

	var act action
	viable, foreign := l.viable()
	ready := len(viable)
	var due []int
	var earliest time.Time
	retrying := 0
	for _, i := range l.progress.Retryable() {
		switch at := l.steps[i].due; {
		case !at.After(now) && l.foreign(i):
			foreign = append(foreign, i)
		case !at.After(now):
			due = append(due, i)
		case earliest.IsZero() || at.Before(earliest):
			earliest = at
			retrying++
		default:
			retrying++
		}
	}
	ready += len(due)
	if l.mayStart() {
		act.starts = l.claims(unit, append(viable, due...))
		ready -= len(act.starts)
	}

	standing := finalizer.Standing{
		Ready: ready, Outstanding: l.progress.Outstanding(), Retrying: retrying, EarliestRetry: earliest,
		Unfinished: l.progress.Unfinished(), Failed: l.names(l.progress.FailedSteps()), Cancelled: l.names(l.progress.CancelledSteps()),
		FailFast: l.template.OnFailure == tasker.FailFast,
	}
	d := finalizer.DecideTask(standing, now)
	if standing.Outstanding > 0 && d.Outcome == finalizer.HasReady && !l.drains() {
		d.Outcome = finalizer.Waiting // max_parallel_steps is reached: a result must come first
	}
	if len(unit.Steps) > 0 {
		l.quiet = now
	}
	if len(foreign) > 0 && ready == 0 && l.room() > 0 && !l.stopping() && !l.runsHere(act) {
		l.handOver(unit, &act, foreign, d)
		return unit, act
	}
	l.conclude(unit, &act, d, now)
	return unit, act
}

// decideOutcomes has the finalizer judge the attempts that ended.
func (l *loop) decideOutcomes(unit *store.Unit, now time.Time) {
	for _, i := range l.fresh {
		s := &l.steps[i]
		d := finalizer.DecideAttempt(&l.template.Steps[i], finalizer.Attempt{
			Number: s.attempt, Losses: s.losses, Forgiven: s.forgiven, Outcome: s.news.kind, Failure: s.news.failure,
		}, now, draw())
		w := store.StepWrite{
			Step: s.id, Was: l.progress.State(i), WasAttempt: s.attempt,
			State: d.State, Attempt: s.attempt, Losses: d.Losses, RetryIn: d.Delay, Result: s.news.result,
		}
		if d.Failure != nil {
			d.Failure.Attempt = s.attempt
			w.Error, _ = json.Marshal(d.Failure) // a Failure always marshals: its raw parts came out of JSON
		}
		if s.out {
			unit.Settled = append(unit.Settled, s.id)
		}
		unit.Steps = append(unit.Steps, w)
		s.losses, s.delay, s.due = d.Losses, d.Delay, now.Add(d.Delay)
		l.progress.Set(i, d.State)
		if d.State == tasker.StepComplete && l.uses[i] > 0 {
			l.results[i] = s.news.result
		}
		if d.Note != "" {
			l.o.Logger.Warn("the wish of a failed attempt was changed", "note", d.Note, "task_id", l.id, "step", l.template.Steps[i].Name, "attempt", s.attempt)
		}
	}
}

// viable lists the pending steps that may start here, as many as there is room
// for at least, and those that may start but need a worker with another handler.
func (l *loop) viable() (here, foreign []int) {
	if l.template.foreign == nil {
		return l.progress.FirstViable(max(l.room(), 1)), nil
	}
	for _, i := range l.progress.Viable() {
		if l.foreign(i) {
			foreign = append(foreign, i)
		} else {
			here = append(here, i)
		}
	}
	return here, foreign
}

func (l *loop) foreign(i int) bool { return l.template.foreign != nil && l.template.foreign[i] }

// room is how many more attempts may be out.
func (l *loop) room() int { return l.template.MaxParallelSteps - l.progress.Outstanding() }

// handOver gives the task up for a worker that has the handlers of the steps
// that may start: soon if there is one, else later, for one may come (a
// deployment that is under way, say).
func (l *loop) handOver(unit *store.Unit, act *action, foreign []int, d finalizer.TaskDecision) {
	missing := map[string]bool{}
	for _, i := range foreign {
		missing[l.template.Steps[i].Handler] = true
	}
	in := l.o.whenHandled(missing) * time.Duration(min(l.task.Epoch, 20)) // the longer it goes on, the more rarely
	if !d.RetryAt.IsZero() {
		in = min(in, d.Delay)
	}
	unit.Release, unit.Rerun, unit.Parked, act.done = true, &in, l.atSidekiq(), true
}

// claims adds the attempts that may start now, in template order, up to
// max_parallel_steps. A step whose outcome is in the same write has to wait for
// the next one.
func (l *loop) claims(unit *store.Unit, candidates []int) []int {
	room := l.room()
	if room <= 0 {
		return nil
	}
	settled := make(map[int64]bool, len(unit.Steps))
	for _, w := range unit.Steps {
		settled[w.Step] = true
	}
	candidates = slices.DeleteFunc(candidates, func(i int) bool { return settled[l.steps[i].id] })
	slices.Sort(candidates)
	candidates = candidates[:min(len(candidates), room)]
	for _, i := range candidates {
		s, spec := &l.steps[i], &l.template.Steps[i]
		w := store.StepWrite{
			Step: s.id, Was: l.progress.State(i), WasAttempt: s.attempt,
			State: tasker.StepInProgress, Attempt: s.attempt + 1, Losses: s.losses,
		}
		if spec.HandlerClass != "" {
			w.State, w.Queue = tasker.StepEnqueued, queueOf(spec)
		}
		unit.Steps = append(unit.Steps, w)
		if w.Was == tasker.StepPending && spec.Handler != "" {
			for _, d := range l.template.graph.Dependencies(i) {
				l.uses[d]--
			}
		}
		s.attempt++
		s.out = w.State == tasker.StepEnqueued
		l.progress.Set(i, w.State)
	}
	return candidates
}

// conclude says what becomes of the task: finished, given up until something
// happens, or kept.
func (l *loop) conclude(unit *store.Unit, act *action, d finalizer.TaskDecision, now time.Time) {
	giveUp := func() { unit.Release, act.done = true, true }
	runsHere := l.runsHere(*act)
	idle := len(unit.Steps) == 0 && len(act.starts) == 0 && now.Sub(l.quiet) >= l.o.ParkAfter
	switch d.Outcome {
	case finalizer.TaskComplete:
		unit.State = tasker.TaskComplete
		giveUp()
	case finalizer.TaskFailed:
		unit.State = tasker.TaskError
		unit.Error, _ = json.Marshal(struct {
			Message string   `json:"message"`
			Steps   []string `json:"steps"`
		}{d.Message, d.Steps}) // strings always marshal
		giveUp()
	case finalizer.RetryViable:
		if l.drains() || d.Delay > l.o.ParkAfter {
			unit.Rerun = &d.Delay
			giveUp()
		}
	case finalizer.Waiting:
		if runsHere || !(idle || l.drains()) {
			return
		}
		unit.Parked = l.atSidekiq()
		if !d.RetryAt.IsZero() {
			unit.Rerun = &d.Delay
		}
		giveUp()
	case finalizer.HasReady:
		// Only when draining: otherwise it would have been started.
		if l.drains() && !runsHere {
			unit.Parked = l.atSidekiq()
			if !l.paused {
				unit.Rerun = new(time.Duration)
			}
			giveUp()
		}
	}
}

// runsHere reports whether an attempt runs in this worker, or is about to.
func (l *loop) runsHere(act action) bool {
	return len(l.running) > 0 || slices.ContainsFunc(act.starts, func(i int) bool { return !l.steps[i].out })
}

// atSidekiq lists the steps whose report is still to come.
func (l *loop) atSidekiq() []int64 {
	var ids []int64
	for i := range l.steps {
		if l.steps[i].out && l.steps[i].news == nil && l.progress.State(i).Outstanding() {
			ids = append(ids, l.steps[i].id)
		}
	}
	return ids
}

func (l *loop) write(unit *store.Unit) error {
	if len(unit.Steps) == 0 && !unit.Release {
		return nil
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
	l.fresh = l.fresh[:0]
}

// act starts what was claimed.
func (l *loop) act(act action) error {
	var dispatches []tasker.Dispatch
	var local []int
	var out []int64
	for _, i := range act.starts {
		s, spec := &l.steps[i], &l.template.Steps[i]
		if !s.out {
			local = append(local, i)
			continue
		}
		dispatches = append(dispatches, tasker.Dispatch{
			TaskID: l.id, StepID: s.id, Attempt: s.attempt, Handler: spec.HandlerClass, Queue: queueOf(spec),
		})
		out = append(out, s.id)
	}
	if len(dispatches) > 0 {
		if !act.done {
			l.o.await(l.id, out)
		}
		l.o.Dispatcher.Push(dispatches)
	}
	if len(local) == 0 {
		return nil
	}
	if err := l.fetchResults(local); err != nil {
		return err
	}
	for _, i := range local {
		l.start(i)
	}
	l.dropResults(local)
	return nil
}

// fetchResults reads the results that the given steps need and the loop doesn't
// have: those of Ruby steps, and those from before this worker owned the task.
func (l *loop) fetchResults(positions []int) error {
	var missing []int64
	for _, i := range positions {
		for _, d := range l.template.graph.Dependencies(i) {
			if _, have := l.results[d]; !have {
				missing = append(missing, l.steps[d].id)
			}
		}
	}
	if len(missing) == 0 {
		return nil
	}
	results, err := store.Patiently(l.o.ctx, func() (map[int64]json.RawMessage, error) {
		return l.o.Store.Results(l.o.ctx, missing)
	})
	if err != nil {
		return err
	}
	for id, result := range results {
		l.results[l.position[id]] = result
	}
	return nil
}

// dropResults lets go of results that no step will ask for again, so that a
// long chain does not keep them all. A retry reads what it needs anew.
func (l *loop) dropResults(started []int) {
	for _, i := range started {
		for _, d := range l.template.graph.Dependencies(i) {
			if l.uses[d] == 0 {
				delete(l.results, d)
			}
		}
	}
}

// start runs the claimed attempt of a Go step.
func (l *loop) start(i int) {
	s, spec := &l.steps[i], &l.template.Steps[i]
	attempt := &tasker.Attempt{
		TaskID: l.id, StepID: s.id, Template: l.template.FullName(), Step: spec.Name,
		Number: s.attempt, Used: s.attempt - s.losses - s.forgiven, Limit: spec.AttemptLimit(),
		CorrelationID: l.task.CorrelationID, Timeout: spec.Timeout.Duration(),
		Context: l.task.Context, Config: spec.HandlerConfig,
	}
	if deps := l.template.graph.Dependencies(i); len(deps) > 0 {
		attempt.Dependencies = make(map[string]json.RawMessage, len(deps))
		for _, d := range deps {
			attempt.Dependencies[l.template.Steps[d].Name] = l.results[d]
		}
	}
	var (
		ctx    context.Context
		cancel context.CancelFunc
		until  time.Time
	)
	if attempt.Timeout > 0 {
		ctx, cancel = context.WithTimeout(l.o.handlers, attempt.Timeout)
		until = time.Now().Add(attempt.Timeout + indulgence)
	} else {
		ctx, cancel = context.WithCancel(l.o.handlers)
	}
	l.running[i] = running{s.attempt, cancel, until}
	go func() {
		result, failure := l.o.Handlers.Run(ctx, spec.Handler, attempt)
		if failure == nil && spec.ResultSchema != nil {
			failure = l.o.misfit(spec, result)
		}
		lost := failure != nil && !failure.Permanent && l.o.handlers.Err() != nil
		l.mail.put(letter{ended: &ended{position: i, attempt: attempt.Number, result: result, failure: failure, lost: lost}})
	}()
}

// misfit is the failure of a result that does not fit its step's result_schema,
// or nil. A result that Postgres can't read at all is left to its write, which
// says so.
func (o *Orchestrator) misfit(spec *tasker.StepTemplate, result json.RawMessage) *tasker.Failure {
	problem, err := store.Patiently(o.ctx, func() (string, error) { return o.Store.SchemaProblem(o.ctx, spec.ResultSchema, result) })
	if err != nil || problem == "" {
		return nil
	}
	return &tasker.Failure{
		Class: "Result", Code: tasker.CodeResultSchema, Permanent: true, Handler: spec.Handler,
		Message: "the result does not fit the result_schema of its step: " + problem,
	}
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
			if due := l.steps[i].due; !l.foreign(i) && (at.IsZero() || due.Before(at)) {
				at = due
			}
		}
	}
	if l.progress.Outstanding() > 0 && len(l.running) == 0 {
		if park := l.quiet.Add(l.o.ParkAfter); at.IsZero() || park.Before(at) {
			at = park
		}
	}
	for _, r := range l.running {
		if !r.deadline.IsZero() && (at.IsZero() || r.deadline.Before(at)) {
			at = r.deadline
		}
	}
	return at
}

// mayStart reports whether new attempts may start.
func (l *loop) mayStart() bool { return !l.drains() && !l.stopping() }

// stopping reports whether a failed step has ended all the others' chances.
func (l *loop) stopping() bool {
	return l.template.OnFailure == tasker.FailFast && l.progress.Failed() > 0
}

// drains reports whether the loop has to hand the task back: the worker stops,
// or the task is paused.
func (l *loop) drains() bool {
	if l.paused {
		return true
	}
	select {
	case <-l.o.draining:
		return true
	default:
		return false
	}
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

func (l *loop) names(positions []int) []string {
	names := make([]string, len(positions))
	for i, p := range positions {
		names[i] = l.template.Steps[p].Name
	}
	return names
}

func queueOf(s *tasker.StepTemplate) string {
	if s.Queue == "" {
		return "default"
	}
	return s.Queue
}
