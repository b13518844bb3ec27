package orchestrator

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/dag"
	"github.com/taskerhq/tasker/finalizer"
	"github.com/taskerhq/tasker/safetext"
	"github.com/taskerhq/tasker/store"
)

// What a loop knows of its task: from rows, from mail, from the clock.

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
	l.fresh, l.inLine = l.fresh[:0], 0
	l.uses = make([]int32, len(rows))
	states := make([]tasker.StepState, len(rows))
	var out []int64
	for i, row := range rows {
		s := step{id: row.StepID, attempt: row.Attempts, losses: row.Losses, forgiven: row.Forgiven, progress: row.Progress, ticket: row.Ticket}
		states[i] = row.State
		l.position[row.StepID] = i
		var known *outcome
		same := before != nil && before[i].attempt == row.Attempts
		if same {
			known = before[i].news
		}
		mine := l.running[i].attempt == row.Attempts
		l.need(i, row.State, +1)
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
	l.o.await(out)
}

// need counts what a pending Go step needs: the results of its dependencies. Called
// with the state that it is in, or leaves.
func (l *loop) need(i int, state tasker.StepState, by int32) {
	if state != tasker.StepPending || l.template.Steps[i].Handler == "" {
		return
	}
	for _, d := range l.template.graph.Dependencies(i) {
		l.uses[d] += by
	}
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
			if e.progress != nil {
				s.progress = e.progress
			}
			if s.attempt != e.attempt || l.progress.State(e.position) != tasker.StepInProgress || s.news != nil {
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
		if letter.admitted {
			l.leaveLine()
			continue
		}
		r := letter.report
		i, ok := l.position[r.StepID]
		if !ok || l.steps[i].attempt != r.Attempts || l.steps[i].news != nil {
			continue
		}
		if letter.told && (r.Ticket == 0 || r.Ticket != l.steps[i].ticket) {
			continue // any login of the database may send notifications
		}
		switch {
		case r.Failure != nil && r.State.Outstanding():
			l.progress.Set(i, r.State) // started meanwhile, or not
			l.steps[i].news = reported(r.Failure)
			l.fresh = append(l.fresh, i)
		case !r.State.Outstanding() && r.State != l.progress.State(i):
			l.progress.Set(i, r.State)
			l.o.openGates()
			l.steps[i].out = false
			l.o.settle(r.StepID)
		}
	}
}

// expire fails the attempts whose handlers ignore that their time is up, and
// those whose heartbeat has stopped. When such a handler returns after all, its
// attempt is not the current one.
func (l *loop) expire(now time.Time) {
	for i, r := range l.running {
		spec := &l.template.Steps[i]
		var code, message string
		switch beat := r.due(); {
		case !r.deadline.IsZero() && !now.Before(r.deadline):
			code, message = tasker.CodeAttemptTimeout,
				fmt.Sprintf("no result after %s (timeout_seconds of the step), and the handler goes on although its context has ended", spec.Timeout.Duration())
		case !beat.IsZero() && !now.Before(beat):
			code, message = tasker.CodeHeartbeatTimeout, fmt.Sprintf("no heartbeat within %s (heartbeat_seconds of the step)", r.heartbeat)
		default:
			continue
		}
		delete(l.running, i)
		r.cancel()
		if progress := r.heart.last(); progress != nil {
			l.steps[i].progress = progress
		}
		l.steps[i].news = &outcome{kind: finalizer.Failed, failure: &tasker.Failure{Class: code, Code: code, Handler: spec.Handler, Message: message}}
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
		safetext.Failure(&f.Failure)
	}
	if f.Lost {
		return &outcome{kind: finalizer.Lost}
	}
	return &outcome{kind: finalizer.Failed, failure: &f.Failure}
}
