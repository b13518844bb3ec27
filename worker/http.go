package worker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/taskerhq/tasker/server"
)

// status is what probes are told of this worker.
type status struct {
	takes     atomic.Bool // tasks
	listening atomic.Bool // for reports
}

// serve answers probes until the returned function is called. Without an address
// it does nothing.
func (w *worker) serve() (stop func(), err error) {
	if w.Listen == "" {
		return func() {}, nil
	}
	listener, err := net.Listen("tcp", w.Listen)
	if err != nil {
		return nil, fmt.Errorf("%w: server.listen %q: %w", ErrConfig, w.Listen, err)
	}
	probe := server.Probe{Store: w.store, MostLag: w.MostLag, Working: func(context.Context) error {
		if !w.status.takes.Load() {
			return errors.New("it has not started yet, stops, or was declared dead and starts anew")
		}
		return nil
	}}
	if w.redis != nil {
		probe.Redis = func(ctx context.Context) error { return w.redis.Ping(ctx).Err() }
	}
	if !w.PollOnly {
		probe.Listening = func() error {
			if !w.status.listening.Load() {
				return errors.New("the connection that listens for reports is down; until it is back they are polled for")
			}
			return nil
		}
	}
	answering := &http.Server{Handler: server.Handler(probe), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	ended := make(chan error, 1)
	go func() { ended <- answering.Serve(listener) }()
	w.Logger.Info("answering HTTP", "address", listener.Addr().String(), "paths", "/health/live /health/ready")
	return func() {
		_ = answering.Close() // probes ask again
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			w.Logger.Warn("HTTP had ended", "error", err)
		}
	}, nil
}
