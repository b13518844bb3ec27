package store

import (
	"cmp"
	"context"
	"sync"
	"time"
)

// Groups says how the calls of a worker's many loops are grouped.
type Groups struct {
	// Connections is how many transactions the writers of all workers have under
	// way, at least one each, and as many again their claimers. More make batches
	// smaller and commits more, on the same disk; with one, nothing is built and
	// received while the other commits.
	Connections int
	Batch       int // most tasks in one write
	ClaimBatch  int // most tasks in one claim
}

// share is how many of the transactions each of so many workers has.
func (g Groups) share(workers int) int {
	return max(1, g.WithDefaults().Connections/max(1, workers))
}

// WithDefaults has the default in place of each zero.
func (g Groups) WithDefaults() Groups {
	g.Connections = cmp.Or(g.Connections, 2)
	g.Batch = cmp.Or(g.Batch, 100)
	g.ClaimBatch = cmp.Or(g.ClaimBatch, 100)
	return g
}

// group turns calls of many goroutines into few calls of flush.
//
// An idle group flushes a lone item at once. While all its flushers are busy the
// items queue up, and the next flusher takes all that wait, up to most. So a
// batch grows with the load and latency is paid only where there is a queue
// anyway. Callers wait for their own item, which is the back-pressure: there are
// never more items than callers.
//
// It waits for company only where somebody has said that it comes, and not for
// long: see expect.
type group[I any, O any] struct {
	flush func([]I) []outcome[O]
	most  int

	mu       sync.Mutex
	waiting  []request[I, O]
	flushers int  // that work
	limit    int  // how many may
	expected int  // items that were announced and have not come
	timed    bool // a timer runs that gives up on them
}

type outcome[O any] struct {
	value O
	err   error
}

type request[I any, O any] struct {
	item I
	done chan outcome[O]
}

// newGroup makes a group whose flush gets 1 to most items and returns an
// outcome for each, in order; up to flushers calls run at once.
func newGroup[I any, O any](flushers, most int, flush func([]I) []outcome[O]) *group[I, O] {
	return &group[I, O]{flush: flush, most: most, limit: flushers}
}

// setLimit says how many calls of flush may run at once from now on; those above
// it end with what they have.
func (g *group[I, O]) setLimit(flushers int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.limit = flushers
	g.wake()
}

// do hands the item in and waits for its outcome, or for ctx. An item that was
// handed in is flushed even when its caller has stopped waiting.
func (g *group[I, O]) do(ctx context.Context, item I) (O, error) {
	r := request[I, O]{item: item, done: make(chan outcome[O], 1)}
	g.mu.Lock()
	g.waiting = append(g.waiting, r)
	if g.expected > 0 {
		g.expected--
	}
	g.wake()
	g.mu.Unlock()
	select {
	case out := <-r.done:
		return out.value, out.err
	case <-ctx.Done():
		var none O
		return none, ctx.Err()
	}
}

// latecomers is how long a group waits for items that were announced. It is
// about what a flush costs that is saved by waiting.
const latecomers = time.Millisecond

// expect says that n items are about to be handed in by callers that have just
// been woken together: the first of them is not flushed alone. Where some of
// them turn out to have nothing to hand in, the others wait for latecomers.
func (g *group[I, O]) expect(n int) {
	if n < 2 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.expected += n
	if g.timed {
		return // the first that waits has waited long enough when it ends
	}
	g.timed = true
	time.AfterFunc(latecomers, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.expected, g.timed = 0, false
		g.wake()
	})
}

// wake starts flushers while there is work and more may run. g.mu is held.
func (g *group[I, O]) wake() {
	for g.flushers < g.limit && g.ready() {
		g.flushers++
		go g.work(g.take())
	}
}

// ready says that there is something to flush, and nothing worth waiting for.
func (g *group[I, O]) ready() bool {
	return len(g.waiting) > 0 && (g.expected == 0 || len(g.waiting) >= g.most)
}

// take takes the next batch. g.mu is held.
func (g *group[I, O]) take() []request[I, O] {
	n := min(len(g.waiting), g.most)
	batch := g.waiting[:n:n]
	g.waiting = g.waiting[n:]
	if len(g.waiting) == 0 {
		g.waiting = nil // let the batch's array go once it is flushed
	}
	return batch
}

// work flushes the batch, and then until nothing is ready or others are enough.
func (g *group[I, O]) work(batch []request[I, O]) {
	for {
		items := make([]I, len(batch))
		for i, r := range batch {
			items[i] = r.item
		}
		for i, out := range g.flush(items) {
			batch[i].done <- out
		}

		g.mu.Lock()
		if g.flushers > g.limit || !g.ready() {
			g.flushers--
			g.mu.Unlock()
			return
		}
		batch = g.take()
		g.mu.Unlock()
	}
}
