// Package events delivers what happens to Go programs, as docs/events.md promises
// it: nothing that is committed is skipped, each event comes at least once, and none
// before one that it followed from.
//
// Subscribe is for what must not be lost: its place is kept in Postgres, under a
// name, and of any number of processes one reads. Follow is for looking on: the
// caller keeps the place.
package events

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/store"
)

// Subscription is a durable subscriber and what it does.
type Subscription struct {
	Name          string   // of the subscriber, and so of its place in Postgres
	Patterns      []string // step.completed, task.*, *; default: all
	FromBeginning bool     // when Postgres doesn't know the name yet: what has happened before, too

	// Handle takes one event at a time. While it fails, it is called again with the
	// same event, after 1 s, 2 s, 4 s, … up to every minute; nothing else is delivered
	// meanwhile. ctx ends when another process has taken over, or the subscriber stops.
	Handle func(ctx context.Context, e *tasker.Event) error

	// GiveUpAfter is how often an event is tried again before it is logged and
	// skipped; 0: never. It is for metrics and the like.
	GiveUpAfter int
	// GaveUp is told before an event is skipped. While it fails, the event is not
	// skipped, but tried again. nil: nobody is told.
	GaveUp func(ctx context.Context, e *tasker.Event, tries int, reason error) error

	Batch  int          // events of one look, and so the most that come again after a kill -9; default 1000
	Logger *slog.Logger // default: slog.Default()
}

// Times of a subscriber. It is held for 5 s, as tasker.hold_subscriber says.
const (
	renewEvery   = 1500 * time.Millisecond
	standBy      = time.Second
	firstRetry   = time.Second
	longestRetry = time.Minute
)

// Subscribe delivers events until ctx ends, and then lets another process take over
// at once. It returns an error only for a subscription that makes no sense; when
// Postgres is away it waits. The event that is being handled when ctx ends is
// finished, and does not come again.
func Subscribe(ctx context.Context, s *store.Store, sub Subscription) error {
	if sub.Handle == nil {
		return fmt.Errorf("subscriber %q: Handle is missing", sub.Name)
	}
	if len(sub.Patterns) == 0 {
		sub.Patterns = []string{"*"}
	}
	if sub.Batch <= 0 {
		sub.Batch = defaultBatch
	}
	if sub.Logger == nil {
		sub.Logger = slog.Default()
	}
	host, err := os.Hostname()
	if err != nil {
		host = "?" // it is for people
	}
	r := &subscriber{
		Subscription: sub, store: s, log: sub.Logger.With("subscriber", sub.Name),
		holder: fmt.Sprintf("%s:%d:%s", host, os.Getpid(), rand.Text()[:8]),
	}
	if _, err := store.Patiently(ctx, func() (struct{}, error) {
		return struct{}{}, s.Subscribe(ctx, sub.Name, sub.Patterns, sub.FromBeginning)
	}); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	bell, silence := hang(ctx, s, r.log)
	defer silence()
	r.bell = bell
	return r.run(ctx)
}

// subscriber is a subscription at work.
type subscriber struct {
	Subscription
	store  *store.Store
	log    *slog.Logger
	holder string
	bell   *bell

	handled store.EventCursor // to be acknowledged with the next look
	passed  store.EventCursor // of the last look that found nothing
	idle    int               // looks in a row that found nothing
	waits   bool              // for another process
}

func (r *subscriber) run(ctx context.Context) error {
	defer r.leave(ctx)
	for ctx.Err() == nil {
		channel := ""
		if r.idle > 0 {
			channel = r.bell.channel
		}
		batch, err := store.Patiently(ctx, func() (*store.EventBatch, error) {
			return r.store.NextEvents(ctx, r.Name, r.holder, r.Batch, r.handled, channel)
		})
		if ctx.Err() != nil {
			return nil
		}
		r.handled = ""
		switch {
		case errors.Is(err, store.ErrHeld):
			if !r.waits {
				r.log.Info("another process reads for this subscriber; standing by")
			}
			r.waits = true
			r.bell.wait(ctx, standBy)
			continue
		case err != nil:
			return err
		}
		r.waits = false
		if len(batch.Events) == 0 {
			if batch.Cursor != r.passed { // passed over what it has not subscribed to
				r.handled = batch.Cursor
			}
			r.passed = batch.Cursor
			r.idle++
			r.bell.wait(ctx, pause(r.idle))
			continue
		}
		r.idle = 0
		r.deliver(ctx, batch)
	}
	return nil
}

// deliver handles a batch, as much of it as is this process's to handle, and
// acknowledges that.
func (r *subscriber) deliver(ctx context.Context, batch *store.EventBatch) {
	mine, lost := context.WithCancelCause(ctx)
	var renewing sync.WaitGroup
	renewing.Go(func() { r.renew(mine, lost) })
	defer renewing.Wait()
	defer lost(nil)

	done := 0
	for failures := 0; done < len(batch.Events) && mine.Err() == nil; {
		e := &batch.Events[done]
		err := r.Handle(mine, e)
		if err == nil {
			done, failures = done+1, 0
			continue
		}
		if mine.Err() != nil {
			break
		}
		failures++
		if r.GiveUpAfter > 0 && failures > r.GiveUpAfter && r.gaveUp(mine, e, failures, err) {
			r.log.Error("an event is skipped: its handler failed too often", "event_id", e.ID, "event", e.Name, "tries", failures, "error", err)
			done, failures = done+1, 0
			continue
		}
		again := min(firstRetry<<min(failures-1, 16), longestRetry)
		r.log.Error("the handler of an event failed; it is tried again", "event_id", e.ID, "event", e.Name, "try", failures, "again_in", again.String(), "error", err)
		if failures == 1 {
			r.acknowledge(mine, batch, done) // what comes after a restart begins here
		}
		if err := r.store.EventFailed(mine, r.Name, r.holder, e.ID, err.Error()); err != nil && mine.Err() == nil {
			r.log.Warn("where it stands could not be noted", "error", err)
		}
		select {
		case <-time.After(again):
		case <-mine.Done():
		}
	}
	if done == len(batch.Events) {
		r.handled = batch.Cursor
		return
	}
	if errors.Is(context.Cause(mine), store.ErrHeld) {
		r.log.Warn("another process has taken over; what is left of the batch is its to handle", "left", len(batch.Events)-done)
		return
	}
	r.acknowledge(leaving(ctx), batch, done)
}

// gaveUp tells whoever wants to know that an event is skipped, and says whether it may
// be.
func (r *subscriber) gaveUp(ctx context.Context, e *tasker.Event, tries int, reason error) bool {
	if r.GaveUp == nil {
		return true
	}
	if err := r.GaveUp(ctx, e, tries, reason); err != nil {
		r.log.Error("that an event is given up could not be noted; it is tried again", "event_id", e.ID, "event", e.Name, "error", err)
		return false
	}
	return true
}

// renew keeps the subscriber while its events are handled, which may take as long
// as it likes.
func (r *subscriber) renew(ctx context.Context, lost context.CancelCauseFunc) {
	for tick := time.NewTicker(renewEvery); ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			tick.Stop()
			return
		}
		err := r.store.HoldSubscriber(ctx, r.Name, r.holder)
		if errors.Is(err, store.ErrHeld) {
			lost(err)
		}
	}
}

func (r *subscriber) acknowledge(ctx context.Context, batch *store.EventBatch, done int) {
	if done == 0 {
		return
	}
	if err := r.store.AcknowledgeEvents(ctx, r.Name, r.holder, batch.Cursor, batch.Events[done-1].ID); err != nil && ctx.Err() == nil {
		r.log.Warn("what was handled could not be acknowledged, and may come again", "error", err)
	}
}

// leave says how far it got, and lets another take over.
func (r *subscriber) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(leaving(ctx), 5*time.Second)
	defer cancel()
	if r.handled != "" {
		if err := r.store.AcknowledgeEvents(ctx, r.Name, r.holder, r.handled, 0); err != nil && !errors.Is(err, store.ErrHeld) {
			r.log.Warn("what was handled could not be acknowledged, and comes again", "error", err)
		}
	}
	if r.waits {
		return
	}
	if err := r.store.ReleaseSubscriber(ctx, r.Name, r.holder); err != nil {
		r.log.Warn("the subscriber could not be given up; another process takes over in 5 s", "error", err)
	}
}

// leaving is for the last words of somebody whose context has ended.
func leaving(ctx context.Context) context.Context { return context.WithoutCancel(ctx) }
