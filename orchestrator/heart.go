package orchestrator

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"github.com/taskerhq/tasker/store"
)

// heart is the heartbeat of an attempt of a Go step. Its handler beats, from
// any goroutine; its loop looks when it did last.
type heart struct {
	o       *Orchestrator
	step    int64
	attempt int

	mu       sync.Mutex
	beaten   time.Time       // when it did last
	progress json.RawMessage // the last one; nil: none
	kept     bool            // it is in the database
	keptAt   time.Time
}

// beat takes note of a heartbeat. ctx is that of the attempt.
func (h *heart) beat(ctx context.Context, progress json.RawMessage) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	now := time.Now()
	h.mu.Lock()
	h.beaten = now
	due := progress != nil && now.Sub(h.keptAt) >= h.o.tuning().ProgressEvery
	if progress != nil {
		h.progress, h.kept = progress, false
	}
	if due {
		h.keptAt = now
	}
	h.mu.Unlock()
	if due {
		return h.keep(ctx)
	}
	return nil
}

// keep writes the progress that is not written yet. Only what the database can't
// hold is an error to the handler: where the attempt is not current any more, or
// somebody's transaction holds its row, no progress is kept, and no harm done.
func (h *heart) keep(ctx context.Context) error {
	h.mu.Lock()
	progress, kept := h.progress, h.kept
	h.kept = true
	h.mu.Unlock()
	if kept || progress == nil {
		return nil
	}
	err := h.o.keeper.Keep(ctx, store.Progress{Step: h.step, Attempt: h.attempt, Progress: progress})
	var refused *store.RefusedError
	switch {
	case errors.As(err, &refused):
		return refused
	case err != nil && ctx.Err() == nil && !errors.Is(err, store.ErrStale) && !errors.Is(err, store.ErrWorkerDead):
		h.o.Logger.Warn("the progress of an attempt was not kept; its next heartbeat tries again", "step_id", h.step, "attempt", h.attempt, "error", err)
	}
	return nil
}

// last is what the handler has told so far; nil: nothing.
func (h *heart) last() json.RawMessage {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.progress
}

// due is when the attempt has failed unless its handler beats before. Zero: it
// need not.
func (r running) due() time.Time {
	if r.heartbeat == 0 {
		return time.Time{}
	}
	r.heart.mu.Lock()
	defer r.heart.mu.Unlock()
	return r.heart.beaten.Add(r.heartbeat)
}
