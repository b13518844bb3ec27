package orchestrator

import (
	"context"
	"fmt"

	"github.com/taskerhq/tasker/crash"
)

// What is enqueued alone starts at once.
//
// River's job brings a task to a worker: it is fetched, which is a transaction,
// and then claimed, which is another. A worker that has little to do claims a
// task that came alone as soon as it is told of it. The job comes all the same,
// finds the visit it asks for under way or made, and is ticked off with its fate:
// nothing depends on the notification.

// littleToDo is how many tasks a worker holds at most when it starts one that
// it was told of. With more, fetching many at once is cheaper.
const littleToDo = 8

// place is where a worker stands among those that are alive.
type place struct{ at, of int64 }

// SetPlace says how many workers are alive, and how many of them have a lower
// number: each starts its share of what comes alone, and has its share of the
// transactions.
func (o *Orchestrator) SetPlace(at, of int) {
	o.place.Store(&place{int64(at), int64(of)})
	o.writer.Among(of)
	o.claimer.Among(of)
}

// Fetched takes note that the jobs of n tasks have been fetched together: their
// visits are about to come.
func (o *Orchestrator) Fetched(n int) { o.claimer.Expect(n) }

// Enqueued takes note of a task that was inserted alone, and of its River job.
// It does not block.
func (o *Orchestrator) Enqueued(task, job int64) {
	if p := o.place.Load(); p == nil || p.of < 1 || task%p.of != p.at {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.drained || o.ctx.Err() != nil || o.loops[task] != nil || len(o.loops) >= min(littleToDo, o.MaxTasks) {
		return
	}
	crash.At(crash.LoneTaskHeard)
	v, l := o.begin(task, job)
	// What goes wrong, the job runs into as well: it is River's to say so.
	o.alone.Go(func() { _ = o.visit(v, l) })
}

// Settle waits for the visits that no River job waits for. It is for after Drain,
// when no more begin.
func (o *Orchestrator) Settle(ctx context.Context) error {
	done := make(chan struct{})
	go func() { o.alone.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for tasks: %w", ctx.Err())
	}
}
