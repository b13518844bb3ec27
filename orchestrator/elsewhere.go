package orchestrator

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// elsewhere remembers which handlers other workers have.
type elsewhere struct {
	mu    sync.Mutex
	known map[string]answer

	bells map[int64]bool // that are set, by the time when they ring, in bellEvery since 1970
}

type answer struct {
	handled bool
	at      time.Time
}

// whenHandled is how long to wait before the task is tried by another worker: the
// longer it goes on, the more rarely. A worker that comes with the handlers wakes
// those that wait for it; where there is one already, the bell is to be set for
// the end of the wait.
func (o *Orchestrator) whenHandled(missing map[string]bool, epoch int) (in time.Duration, ring bool) {
	tuning := o.tuning()
	if o.handledElsewhere(missing) {
		return tuning.HandledElsewhere * time.Duration(min(epoch, 5)), true
	}
	return doubled(tuning.HandledNowhere, epoch, tuning.HandledNowhereMost), false
}

// ringAfter has workers fetch what was handed over and will be due after that;
// River would find it with its next poll only. It is called once the write is
// committed: the time in the database counts from before that. However many
// tasks there are, a bell rings once in bellEvery.
func (o *Orchestrator) ringAfter(in time.Duration) {
	const bellEvery = 10 * time.Millisecond
	due := time.Now().Add(in)
	tick := due.UnixNano()/int64(bellEvery) + 1
	o.others.mu.Lock()
	set := o.others.bells[tick]
	o.others.bells[tick] = true
	o.others.mu.Unlock()
	if set {
		return
	}
	time.AfterFunc(in+bellEvery, func() {
		o.others.mu.Lock()
		delete(o.others.bells, tick)
		o.others.mu.Unlock()
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
