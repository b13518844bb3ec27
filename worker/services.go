package worker

import (
	"context"
	"log/slog"
	"time"
)

// every calls f now and again after each interval until ctx ends. Failures are
// logged when they begin and when they end, not each time.
func every(ctx context.Context, interval time.Duration, log *slog.Logger, f func(context.Context) error) {
	paced(ctx, func() (time.Duration, <-chan struct{}) { return interval, nil }, log, f)
}

// everyLive is every with an interval that may change, also during the wait.
func everyLive(ctx context.Context, l *live, interval func(*Live) time.Duration, log *slog.Logger, f func(context.Context) error) {
	paced(ctx, func() (time.Duration, <-chan struct{}) {
		now, changed := l.get()
		return interval(now), changed
	}, log, f)
}

// sparely is everyLive for what may take long, as with many open tasks, or with many
// that ended since somebody took a snapshot that is still held: then it happens up
// to ten times more rarely, so that it takes one in share of the time.
func sparely(ctx context.Context, l *live, interval func(*Live) time.Duration, share int, log *slog.Logger, f func(context.Context) error) {
	const rarest = 10
	var took time.Duration
	everyLive(ctx, l, func(l *Live) time.Duration {
		least := interval(l)
		return min(max(least, time.Duration(share)*took), rarest*least)
	}, log, func(ctx context.Context) error {
		began := time.Now()
		defer func() { took = time.Since(began) }()
		return f(ctx)
	})
}

func paced(ctx context.Context, pace func() (time.Duration, <-chan struct{}), log *slog.Logger, f func(context.Context) error) {
	failing := false
	for {
		began := time.Now()
		switch err := f(ctx); {
		case ctx.Err() != nil:
			return
		case err != nil && !failing:
			failing = true
			log.Warn("a periodic service fails; it keeps trying", "error", err)
		case err == nil && failing:
			failing = false
			log.Info("the periodic service works again")
		}
		for due := false; !due; {
			interval, changed := pace()
			timer := time.NewTimer(time.Until(began.Add(interval)))
			select {
			case <-timer.C:
				due = true
			case <-changed:
			case <-ctx.Done():
			}
			timer.Stop()
			if ctx.Err() != nil {
				return
			}
		}
	}
}

// quiet lets only warnings and errors through: River narrates its maintenance.
func quiet(log *slog.Logger) *slog.Logger { return slog.New(quietHandler{log.Handler()}) }

type quietHandler struct{ slog.Handler }

func (h quietHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn && h.Handler.Enabled(ctx, level)
}
func (h quietHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return quietHandler{h.Handler.WithAttrs(attrs)}
}
func (h quietHandler) WithGroup(name string) slog.Handler {
	return quietHandler{h.Handler.WithGroup(name)}
}
