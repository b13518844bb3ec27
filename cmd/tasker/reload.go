package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/taskerhq/tasker/config"
	"github.com/taskerhq/tasker/worker"
)

// onHangup catches SIGHUP from now on, so that one that comes before the worker
// is up does not end it.
func onHangup() (hangups chan os.Signal, stop func()) {
	hangups = make(chan os.Signal, 1) // two that come together are one
	signal.Notify(hangups, syscall.SIGHUP)
	return hangups, func() { signal.Stop(hangups) }
}

// reload reads the settings again at each SIGHUP and hands the worker what may
// change while it runs. Settings that are wrong change nothing.
func (a *app) reload(ctx context.Context, hangups <-chan os.Signal, updates chan<- worker.Live, log *slog.Logger) {
	current := a.settings
	for {
		select {
		case <-hangups:
		case <-ctx.Done():
			return
		}
		next, err := config.Load(a.sources())
		var live worker.Live
		if err == nil {
			live, err = liveConfig(next)
		}
		if err != nil {
			tellProblems(log, err)
			continue
		}
		now, changed, pending := current.Adopt(next)
		current = now
		for _, c := range changed {
			log.Info("setting changed", "key", c.Key, "old", c.Old, "new", c.New)
		}
		for _, c := range pending {
			log.Warn("setting differs and takes a restart of this worker", "key", c.Key, "runs_with", c.Old, "new", c.New)
		}
		a.setLevel(current)
		select {
		case updates <- live:
		case <-ctx.Done():
			return
		}
	}
}

func tellProblems(log *slog.Logger, err error) {
	const message = "the settings are wrong; the worker goes on with those it has"
	var problems config.Errors
	if !errors.As(err, &problems) {
		log.Error(message, "error", err)
		return
	}
	for _, p := range problems {
		log.Error(message, "place", p.Place, "problem", p.Message)
	}
}
