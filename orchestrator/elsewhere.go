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
}

type answer struct {
	handled bool
	at      time.Time
}

// whenHandled is how long to wait before the task is tried by another worker.
func (o *Orchestrator) whenHandled(missing map[string]bool) time.Duration {
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
			return tuning.HandledNowhere
		}
		if !handled && (a.handled || !ok) {
			o.Logger.Warn("steps wait: no living worker has their Go handlers; start one that has", "handlers", key)
		}
		a = answer{handled, now}
		o.others.mu.Lock()
		o.others.known[key] = a
		o.others.mu.Unlock()
	}
	if a.handled {
		return tuning.HandledElsewhere
	}
	return tuning.HandledNowhere
}
