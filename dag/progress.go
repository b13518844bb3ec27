package dag

import (
	"fmt"
	"slices"

	"github.com/taskerhq/tasker"
)

// Progress follows one task through its graph and knows, after each change,
// what may start. It belongs to one goroutine.
type Progress struct {
	graph  *Graph
	states []tasker.StepState
	unmet  []int32 // per step: dependencies that are not satisfied
	barred []int32 // per step: dependencies that bar the way
	bars   []bool  // per step: what depends on it can't run as things stand

	viable, retryable, failed, cancelled, blocked positions

	outstanding, unfinished, waiting int

	work []int // reused by spread
}

// NewProgress starts from the states of a task's steps, in template order. It
// panics when there are not as many states as steps. The slice stays the
// caller's.
func NewProgress(g *Graph, states []tasker.StepState) *Progress {
	n := g.Len()
	if len(states) != n {
		panic(fmt.Sprintf("dag: %d states for %d steps", len(states), n))
	}
	p := &Progress{
		graph:  g,
		states: slices.Clone(states),
		unmet:  make([]int32, n),
		barred: make([]int32, n),
		bars:   make([]bool, n),

		viable:    newPositions(n),
		retryable: newPositions(n),
		failed:    newPositions(n),
		cancelled: newPositions(n),
		blocked:   newPositions(n),
	}
	for _, i := range g.order { // dependencies first, so that one pass is enough
		for _, d := range g.dependencies[i] {
			if !p.states[d].Satisfied() {
				p.unmet[i]++
			}
			if p.bars[d] {
				p.barred[i]++
			}
		}
		p.bars[i] = p.barsNow(i)
		p.blocked.put(i, p.Blocked(i))
		p.count(i, +1)
		p.admit(i)
	}
	return p
}

// Set records that step i is in state s now. It costs the edges whose meaning
// changes: the step's own when it becomes satisfied or stops being so, and
// those below it that become blocked or free.
func (p *Progress) Set(i int, s tasker.StepState) {
	old := p.states[i]
	if old == s {
		return
	}
	p.count(i, -1)
	p.states[i] = s
	p.count(i, +1)
	if was, is := old.Satisfied(), s.Satisfied(); was != is {
		change := int32(1)
		if is {
			change = -1
		}
		for _, d := range p.graph.dependents[i] {
			p.unmet[d] += change
			p.admit(d)
		}
	}
	p.admit(i)
	p.spread(i)
}

// State is the state of step i as last told.
func (p *Progress) State(i int) tasker.StepState { return p.states[i] }

// Graph is the graph that is followed.
func (p *Progress) Graph() *Graph { return p.graph }

// Viable lists the pending steps whose dependencies are all satisfied, sorted.
func (p *Progress) Viable() []int { return p.viable.all() }

// FirstViable lists the first n viable steps, sorted. It costs n, not the size
// of the task.
func (p *Progress) FirstViable(n int) []int { return p.viable.first(n) }

// ViableCount is the length of Viable.
func (p *Progress) ViableCount() int { return p.viable.count }

// Retryable lists the steps that wait for a retry and whose dependencies are
// all satisfied, sorted. Each may start once its delay is over: the delays are
// the caller's to know.
func (p *Progress) Retryable() []int { return p.retryable.all() }

// RetryableCount is the length of Retryable.
func (p *Progress) RetryableCount() int { return p.retryable.count }

// Blocked reports whether step i can't run unless an operator steps in: it is
// yet to start (pending, or waiting for a retry), and one of its dependencies
// is in error, cancelled or itself blocked. A failure further up doesn't reach
// past a dependency that was skipped or resolved, nor past one whose attempt is
// out: that one may still complete.
func (p *Progress) Blocked(i int) bool { return p.bars[i] && waits(p.states[i]) }

// BlockedCount is the number of blocked steps.
func (p *Progress) BlockedCount() int { return p.blocked.count }

// FailedSteps lists the steps in error, sorted.
func (p *Progress) FailedSteps() []int { return p.failed.all() }

// Failed is the number of steps in error.
func (p *Progress) Failed() int { return p.failed.count }

// CancelledSteps lists the cancelled steps, sorted.
func (p *Progress) CancelledSteps() []int { return p.cancelled.all() }

// Cancelled is the number of cancelled steps.
func (p *Progress) Cancelled() int { return p.cancelled.count }

// Outstanding is the number of steps with an attempt out.
func (p *Progress) Outstanding() int { return p.outstanding }

// Waiting is the number of steps in waiting_for_retry, be they blocked or not.
func (p *Progress) Waiting() int { return p.waiting }

// Unfinished is the number of steps that the engine is not done with.
func (p *Progress) Unfinished() int { return p.unfinished }

// admit lists step i among those that may start, or takes it out.
func (p *Progress) admit(i int) {
	s, free := p.states[i], p.unmet[i] == 0
	p.viable.put(i, free && s == tasker.StepPending)
	p.retryable.put(i, free && s == tasker.StepWaitingForRetry)
}

// count adds step i to the figures of its state, or takes it out.
func (p *Progress) count(i, by int) {
	s := p.states[i]
	if s.Outstanding() {
		p.outstanding += by
	}
	if !s.Finished() {
		p.unfinished += by
	}
	if s == tasker.StepWaitingForRetry {
		p.waiting += by
	}
	if s == tasker.StepError {
		p.failed.put(i, by > 0)
	}
	if s == tasker.StepCancelled {
		p.cancelled.put(i, by > 0)
	}
}

// spread carries a change of what step i bars down to the steps below it, as
// far as it changes anything there. The graph has no cycles, so it ends.
func (p *Progress) spread(i int) {
	p.work = append(p.work[:0], i)
	for len(p.work) > 0 {
		i := p.work[len(p.work)-1]
		p.work = p.work[:len(p.work)-1]
		now := p.barsNow(i)
		p.blocked.put(i, now && waits(p.states[i]))
		if now == p.bars[i] {
			continue
		}
		p.bars[i] = now
		change := int32(-1)
		if now {
			change = 1
		}
		for _, d := range p.graph.dependents[i] {
			p.barred[d] += change
			p.work = append(p.work, d)
		}
	}
}

// barsNow says whether what depends on step i can't run: the step failed or was
// cancelled, or it is yet to start and its own way is barred.
func (p *Progress) barsNow(i int) bool {
	s := p.states[i]
	return s == tasker.StepError || s == tasker.StepCancelled || (waits(s) && p.barred[i] > 0)
}

// waits reports whether a step in state s starts only when its dependencies
// let it.
func waits(s tasker.StepState) bool {
	return s == tasker.StepPending || s == tasker.StepWaitingForRetry
}
