package orchestrator

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/finalizer"
	"github.com/taskerhq/tasker/store"
)

// What a loop makes of what it knows: the next write.

// decide works out the next write: outcomes that are in, attempts to start, and
// what becomes of the task. It moves the view ahead; if the write is refused,
// reload puts it back.
func (l *loop) decide(now time.Time) (*store.Unit, action) {
	known := l.o.gates.Load()
	unit := &store.Unit{Task: l.id, Epoch: l.task.Epoch, Gates: known.Version}
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
	held := 0 // they wait for word from a gate, as others for a result
	if l.mayStart() {
		free := l.notInLine(append(viable, due...), known)
		held = ready - len(free)
		act.starts = l.claims(unit, free, known)
		ready -= held + len(act.starts)
	}

	standing := finalizer.Standing{
		Ready: ready, Outstanding: l.progress.Outstanding() + held, Retrying: retrying, EarliestRetry: earliest,
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
		if slices.ContainsFunc(unit.Steps, func(w store.StepWrite) bool { return len(w.Gates) > 0 }) {
			act.again = true // which of them pass is not known yet
			return unit, act
		}
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
			MaxLosses: l.o.tuning().MaxLosses,
		}, l.o.databaseTime(now), draw())
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
			l.log().Warn("the wish of a failed attempt was changed", "note", d.Note, "step", l.template.Steps[i].Name, "attempt", s.attempt)
		}
	}
}

// viable lists the pending steps that may start here, as many as there is room
// for at least, and those that may start but need a worker with another handler.
func (l *loop) viable() (here, foreign []int) {
	if l.template.foreign == nil && l.inLine == 0 {
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
	in, ring := l.o.whenHandled(missing, l.task.Epoch)
	if !d.RetryAt.IsZero() {
		in = min(in, d.Delay)
	}
	unit.Release, unit.Rerun, act.done, act.ring = true, &in, true, ring
	l.park(unit)
}

// park makes the reports that are still to come insert River jobs. Where that is
// refused time and again, somebody reports in a transaction that stays open;
// then the task is given up all the same and looked at again in a moment.
func (l *loop) park(unit *store.Unit) {
	const stubborn = 4
	if l.refusals < stubborn {
		unit.Parked = l.atSidekiq()
		return
	}
	in := l.o.tuning().BlockedFor
	if unit.Rerun != nil {
		in = min(in, *unit.Rerun)
	}
	unit.Rerun = &in
}

// claims adds the attempts that may start now, in template order, up to
// max_parallel_steps. A step whose outcome is in the same write has to wait for
// the next one.
func (l *loop) claims(unit *store.Unit, candidates []int, known *store.KnownGates) []int {
	room := l.room()
	if room <= 0 {
		return nil
	}
	settled := make(map[int64]tasker.StepState, len(unit.Steps))
	for _, w := range unit.Steps {
		settled[w.Step] = w.State
	}
	candidates = slices.DeleteFunc(candidates, func(i int) bool { return settled[l.steps[i].id] != "" })
	slices.Sort(candidates)
	candidates = candidates[:min(len(candidates), room)]
	for _, i := range candidates {
		s, spec := &l.steps[i], &l.template.Steps[i]
		w := store.StepWrite{
			Step: s.id, Was: l.progress.State(i), WasAttempt: s.attempt,
			State: tasker.StepInProgress, Attempt: s.attempt + 1, Losses: s.losses,
		}
		if spec.HandlerClass != "" {
			w.State, w.Queue, w.StartIn = tasker.StepEnqueued, queueOf(spec), spec.StartTimeout
			s.ticket = l.o.ticket(s.id, w.Attempt)
			w.Ticket = s.ticket
		}
		w.Gates = gatesOf(known, l.template.Template, spec)
		for _, d := range l.template.graph.Dependencies(i) {
			if id := l.steps[d].id; settled[id] != tasker.StepComplete {
				unit.Needs = append(unit.Needs, id)
			}
		}
		unit.Steps = append(unit.Steps, w)
		l.claimed(i, w.State)
	}
	return candidates
}

// claimed moves the view ahead by a claim.
func (l *loop) claimed(i int, state tasker.StepState) {
	s, was := &l.steps[i], l.progress.State(i)
	l.need(i, was, -1)
	s.attempt++
	s.before = was
	s.out = state == tasker.StepEnqueued
	l.progress.Set(i, state)
}

// conclude says what becomes of the task: finished, given up until something
// happens, or kept.
func (l *loop) conclude(unit *store.Unit, act *action, d finalizer.TaskDecision, now time.Time) {
	giveUp := func() { unit.Release, act.done = true, true }
	runsHere := l.runsHere(*act)
	idle := len(unit.Steps) == 0 && len(act.starts) == 0 && now.Sub(l.quiet) >= l.o.patience()
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
		if l.drains() || d.Delay > l.o.tuning().ParkAfter {
			unit.Rerun = &d.Delay
			giveUp()
		}
	case finalizer.Waiting:
		if runsHere || !(idle || l.drains()) {
			return
		}
		if !d.RetryAt.IsZero() {
			unit.Rerun = &d.Delay
		}
		l.park(unit)
		giveUp()
	case finalizer.HasReady:
		// Only when draining: otherwise it would have been started.
		if l.drains() && !runsHere {
			if !l.paused {
				unit.Rerun = new(time.Duration)
			}
			l.park(unit)
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

func (l *loop) names(positions []int) []string {
	names := make([]string, len(positions))
	for i, p := range positions {
		names[i] = l.template.Steps[p].Name
	}
	return names
}
