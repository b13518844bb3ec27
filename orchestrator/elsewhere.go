package orchestrator

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// elsewhere remembers which handlers other workers have.
type elsewhere struct {
	mu    sync.Mutex
	known map[string]answer

	handed atomic.Int32 // tasks handed over since a bell was set; 0: none is set
}

type answer struct {
	handled bool
	at      time.Time
}

// whenHandled is how long to wait before the task is tried by another worker: the
// longer it goes on, the more rarely. A worker that comes with the handlers wakes
// those that wait for it.
func (o *Orchestrator) whenHandled(missing map[string]bool, epoch int) time.Duration {
	tuning := o.tuning()
	if o.handledElsewhere(missing) {
		in := tuning.HandledElsewhere * time.Duration(min(epoch, 5))
		if o.others.handed.Add(1) == 1 {
			o.ringAfter(in)
		}
		return in
	}
	return doubled(tuning.HandledNowhere, epoch, tuning.HandledNowhereMost)
}

// ringAfter has workers fetch what was handed over; River would find it with its
// next poll only. One bell is set at a time, however many tasks there are.
func (o *Orchestrator) ringAfter(in time.Duration) {
	const commit = 10 * time.Millisecond // the time counts from the write, which is still to come
	time.AfterFunc(in+commit, func() {
		if o.others.handed.Swap(0) > 1 { // some came later, and are due later
			o.others.handed.Store(1)
			o.ringAfter(in)
		}
		if err := o.Store.Ring(o.ctx); err != nil && o.ctx.Err() == nil {
			o.Logger.Debug("tasks that were handed over wait for River's poll", "error", err)
		}
	})
}

// doubled is the wait, doubled with each epoch after the first, up to most:
// 3 s, 6 s, 12 s and so on. A wait that is longer than most stays as it is.
func doubled(wait time.Duration, epoch int, most time.Duration) time.Duration {
	for ; epoch > 1 && wait < most; epoch-- {
		wait += min(wait, most-wait)
	}
	return wait
}

func (o *Orchestrator) handledElsewhere(missing map[string]bool) bool {
	tuning := o.tuning()
	names := slices.Sorted(maps.Keys(missing))
	key := strings.Join(names, " ")
	now := time.Now()
	o.others.mu.Lock()
	a, ok := o.others.known[key]
	o.others.mu.Unlock()
	if !ok || now.Sub(a.at) > tuning.AskAgain {
		handled, err := o.Store.HandledElsewhere(o.ctx, o.Worker, names)
		if err != nil {
			return false
		}
		if !handled && (a.handled || !ok) {
			o.Logger.Warn("steps wait: no living worker has their Go handlers; start one that has", "handlers", key)
		}
		a = answer{handled, now}
		o.others.mu.Lock()
		o.others.known[key] = a
		o.others.mu.Unlock()
	}
	return a.handled
}
