package events

import (
	"context"
	"crypto/rand"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/taskerhq/tasker/store"
)

const defaultBatch = 1000

// Follow reads events after a cursor that the caller keeps, batch by batch, and then
// waits for more, until ctx ends or take returns an error, which it returns. After
// each batch that take has taken, its cursor is where to go on from.
//
// Unlike a subscriber, it holds back no retention: events that are pruned before
// they are read are not seen.
func Follow(ctx context.Context, s *store.Store, after store.EventCursor, patterns []string, log *slog.Logger, take func(*store.EventBatch) error) error {
	b, silence := hang(ctx, s, log)
	defer silence()
	for idle := 0; ctx.Err() == nil; {
		channel := ""
		if idle > 0 {
			channel = b.channel
		}
		batch, err := store.Patiently(ctx, func() (*store.EventBatch, error) {
			return s.ReadEvents(ctx, after, patterns, defaultBatch, b.channel, channel)
		})
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		after = batch.Cursor
		if len(batch.Events) == 0 {
			idle++
			b.wait(ctx, pause(idle))
			continue
		}
		idle = 0
		if err := take(batch); err != nil {
			return err
		}
	}
	return nil
}

// pause is how long to wait after so many looks in vain; from the second on, the
// next event rings.
func pause(looks int) time.Duration {
	pauses := []time.Duration{5 * time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond, 100 * time.Millisecond, 500 * time.Millisecond, 2 * time.Second}
	return pauses[min(looks, len(pauses))-1]
}

// bell rings when Postgres notifies a channel of its own. It only makes it quick:
// who waits looks all the same, in the end.
type bell struct {
	channel string
	rung    chan struct{}
}

// hang has a new bell ring until it is silenced, which waits until nothing is left
// of it.
func hang(ctx context.Context, s *store.Store, log *slog.Logger) (b *bell, silence func()) {
	b = &bell{channel: "tasker_events_" + strings.ToLower(rand.Text()), rung: make(chan struct{}, 1)}
	listening, stop := context.WithCancel(ctx)
	var listener sync.WaitGroup
	listener.Go(func() { b.listen(listening, s, log) })
	return b, func() { stop(); listener.Wait() }
}

func (b *bell) ring() {
	select {
	case b.rung <- struct{}{}:
	default:
	}
}

// wait returns when the bell has rung, after so long, or when ctx ends.
func (b *bell) wait(ctx context.Context, most time.Duration) {
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-b.rung:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// listen keeps listening until ctx ends.
func (b *bell) listen(ctx context.Context, s *store.Store, log *slog.Logger) {
	for {
		err := s.ListenOn(ctx, b.channel, b.ring, func(string) { b.ring() })
		if ctx.Err() != nil {
			return
		}
		log.Debug("not listening for events; until it does, they are looked for", "error", err)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return
		}
	}
}
