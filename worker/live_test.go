package worker

import (
	"context"
	"log/slog"
	"testing"
	"time"
)

// An interval that gets shorter counts from the last call, not from the end of
// a wait that may be an hour.
func TestAChangedIntervalCutsTheWaitThatIsUnderWay(t *testing.T) {
	t.Parallel()
	l := newLive(Live{SweepEvery: time.Hour}.WithDefaults())
	ctx, cancel := context.WithCancel(t.Context())
	called, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		everyLive(ctx, l, func(l *Live) time.Duration { return l.SweepEvery }, slog.New(slog.DiscardHandler), func(ctx context.Context) error {
			select {
			case called <- struct{}{}:
			case <-ctx.Done():
			}
			return nil
		})
	}()
	<-called // at once
	l.set(Live{SweepEvery: time.Millisecond}.WithDefaults())
	<-called
	cancel()
	<-ended
}
