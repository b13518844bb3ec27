package orchestrator

import (
	"errors"
	"slices"
	"time"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/store"
)

// Gates: limits and pauses, which the database decides on. A loop tells it which
// gates each of its claims has to pass, and remembers which steps were denied:
// they are in line, and their task is woken when it is their turn.

// Pauses of the gatekeeper that are no trade of an operator's: while somebody's
// open transaction holds a gate, and between two looks that found nobody.
const (
	gatesBusy  = 50 * time.Millisecond
	gatesPause = 10 * time.Millisecond
)

// refreshGates reads the gates. Loops that decide meanwhile use the old ones
// and are refused.
func (o *Orchestrator) refreshGates() error {
	known, err := store.Patiently(o.ctx, func() (*store.KnownGates, error) { return o.Store.KnownGates(o.ctx) })
	if err != nil {
		return err
	}
	o.gates.Store(known)
	o.openGates()
	return nil
}

// gatesOf lists the gates that a claim of the step has to pass.
func gatesOf(known *store.KnownGates, t *tasker.Template, s *tasker.StepTemplate) []int32 {
	if len(known.Gates) == 0 {
		return nil
	}
	var list []int32
	add := func(scope, name string) {
		if id, set := known.Gates[store.GateKey{Scope: scope, Name: name}]; set && name != "" {
			list = append(list, id)
		}
	}
	add("template", t.Namespace+"/"+t.Name)
	add("handler", s.Handler+s.HandlerClass)
	if s.HandlerClass != "" {
		add("queue", queueOf(s))
	}
	add("key", s.LimitKey)
	return list
}

// openGates says that a place may have got free, or that somebody has come into
// the line. It does not block.
func (o *Orchestrator) openGates() {
	if o.gates.Load().Version > 0 {
		o.wakeGatekeeper()
	}
}

func (o *Orchestrator) wakeGatekeeper() {
	select {
	case o.gatekeeping <- struct{}{}:
	default:
	}
}

// keepGates admits those whose turn it is, whenever there may be room. Where no
// gate has been set it only looks, every now and then, whether one has been.
func (o *Orchestrator) keepGates() {
	failing := false
	for again := time.After(0); ; {
		select {
		case <-o.gatekeeping:
		case <-again:
		case <-o.ctx.Done():
			return
		}
		in, idle, err := o.admit()
		if errors.Is(err, store.ErrBusy) { // somebody changes a gate, and has not committed yet
			in, idle, err = gatesBusy, false, nil
		}
		if err != nil && o.ctx.Err() == nil && !failing {
			o.Logger.Warn("steps that wait at a limit can't be admitted; it is tried again", "error", err)
		}
		failing = err != nil
		again = time.After(in)
		if idle { // no need to look after each attempt that ends
			select {
			case <-time.After(gatesPause):
			case <-o.ctx.Done():
			}
		}
	}
}

// admit admits whom it can and says when to do so again, and whether nobody
// waits.
func (o *Orchestrator) admit() (again time.Duration, idle bool, err error) {
	if o.gates.Load().Version == 0 {
		known, err := o.Store.KnownGates(o.ctx)
		if err != nil || known.Version == 0 {
			return o.tuning().GatesIdle, true, err
		}
		o.gates.Store(known)
	}
	in, err := o.Store.AdmitWaiters(o.ctx)
	if err != nil || in == 0 {
		return o.tuning().GatesEvery, err == nil, err
	}
	return in, false, nil
}

// Admitted takes note that a gate lets steps of a task pass that this worker
// holds; 0: that a gate was changed.
func (o *Orchestrator) Admitted(task int64) {
	if task == 0 {
		o.wakeGatekeeper()
		return
	}
	o.deliver(task, letter{admitted: true})
}

// deny takes note of claims that were denied: the steps are as they were before,
// and stand in line.
func (l *loop) deny(act *action, denied []int64) {
	for _, id := range denied {
		i := l.position[id]
		s := &l.steps[i]
		l.progress.Set(i, s.before)
		s.attempt--
		s.out, s.inLine = false, true
		l.inLine++
		l.need(i, s.before, +1)
	}
	if len(denied) > 0 {
		act.starts = slices.DeleteFunc(act.starts, func(i int) bool { return l.steps[i].inLine })
		act.again = true // others may pass where these did not
		l.o.openGates()  // a rate may have room in a moment
	}
}

// leaveLine has all steps that stand in line try again. Those whose turn it is
// not are denied once more and keep their place.
func (l *loop) leaveLine() {
	for i := range l.steps {
		l.steps[i].inLine = false
	}
	l.inLine = 0
}

// notInLine leaves out the steps that stand in line, and those that would stand
// behind max_parallel_steps of their own task there: they could not start before
// them, and a wide task would fill the line.
func (l *loop) notInLine(candidates []int, known *store.KnownGates) []int {
	if l.inLine == 0 {
		return candidates
	}
	before := map[[4]int32]int{}
	gates := func(i int) (list [4]int32) {
		copy(list[:], gatesOf(known, l.template.Template, &l.template.Steps[i]))
		return list
	}
	for _, i := range candidates {
		if l.steps[i].inLine {
			before[gates(i)]++
		}
	}
	return slices.DeleteFunc(candidates, func(i int) bool {
		return l.steps[i].inLine || before[gates(i)] >= l.template.MaxParallelSteps
	})
}
