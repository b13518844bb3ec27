package orchestrator

import (
	"context"

	"github.com/taskerhq/tasker/store"
)

// Tracer puts what a worker does into the traces of those who asked for it. Its
// methods are called by many loops at once, and keep them waiting.
type Tracer interface {
	// Context is the context of an attempt of a Go step.
	Context(ctx context.Context, t *store.Claimed, step int64, attempt int) context.Context
	// Ended is told of a task whose end has just been committed.
	Ended(t *store.Claimed)
}
