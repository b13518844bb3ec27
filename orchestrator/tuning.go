package orchestrator

import (
	"cmp"
	"time"

	"github.com/taskerhq/tasker/finalizer"
)

// Tuning is what may change while loops run. The zero value of a field means
// its default.
type Tuning struct {
	// ParkAfter is how long a loop keeps a task that only waits for Sidekiq, or
	// for a retry. Afterwards the task costs no memory and no River slot, and is
	// taken up again by a River job.
	ParkAfter time.Duration

	// HoldFor is how long it keeps one that waits for Sidekiq while a quarter of
	// the worker's places is free: to take a task up again costs more than to
	// keep it. At least ParkAfter.
	HoldFor time.Duration

	// Indulgence is how much longer than its timeout a handler may take to notice
	// that its context has ended. Then its attempt has failed without it.
	Indulgence time.Duration

	// MaxLosses is how many attempts of one step may be lost with the process
	// that ran them.
	MaxLosses int

	// How soon a task is looked at again that needs a handler which this worker
	// doesn't have: any worker may get it then, so it may take a few rounds. Where
	// nobody has it the time doubles with each round up to HandledNowhereMost. An
	// answer to whether another worker has it is believed for AskAgain.
	HandledElsewhere   time.Duration
	HandledNowhere     time.Duration
	HandledNowhereMost time.Duration
	AskAgain           time.Duration

	// BlockedFor is how long a loop waits at most before it tries a write again
	// that somebody's open transaction stands in the way of.
	BlockedFor time.Duration

	// GiveUpFor is when a task is tried again that a loop could not move.
	GiveUpFor time.Duration

	// ProgressEvery is how often the progress of one attempt is written at most.
	ProgressEvery time.Duration

	// GatesEvery is how often the line is looked at while there are gates, should
	// nobody have said that a place got free; GatesIdle how often, while there are
	// none, whether there are.
	GatesEvery time.Duration
	GatesIdle  time.Duration
}

// WithDefaults has the default in place of each zero.
func (t Tuning) WithDefaults() Tuning {
	t.ParkAfter = cmp.Or(t.ParkAfter, 2*time.Second)
	t.HoldFor = max(cmp.Or(t.HoldFor, 30*time.Second), t.ParkAfter)
	t.Indulgence = cmp.Or(t.Indulgence, 5*time.Second)
	t.MaxLosses = cmp.Or(t.MaxLosses, finalizer.MaxLosses)
	t.HandledElsewhere = cmp.Or(t.HandledElsewhere, 50*time.Millisecond)
	t.HandledNowhere = cmp.Or(t.HandledNowhere, 3*time.Second)
	t.HandledNowhereMost = cmp.Or(t.HandledNowhereMost, 5*time.Minute)
	t.AskAgain = cmp.Or(t.AskAgain, time.Second)
	t.BlockedFor = cmp.Or(t.BlockedFor, time.Second)
	t.GiveUpFor = cmp.Or(t.GiveUpFor, time.Minute)
	t.ProgressEvery = cmp.Or(t.ProgressEvery, time.Second)
	t.GatesEvery = cmp.Or(t.GatesEvery, time.Second)
	t.GatesIdle = cmp.Or(t.GatesIdle, 10*time.Second)
	return t
}

// Tune changes the tuning. Loops see it with their next decision.
func (o *Orchestrator) Tune(t Tuning) {
	t = t.WithDefaults()
	o.tuned.Store(&t)
}

func (o *Orchestrator) tuning() *Tuning { return o.tuned.Load() }
