package worker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/taskerhq/tasker/orchestrator"
	"github.com/taskerhq/tasker/server"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/telemetry"
)

// status is what probes are told of this worker.
type status struct {
	takes     atomic.Bool // tasks
	listening atomic.Bool // for reports
	loops     atomic.Pointer[orchestrator.Orchestrator]
	answers   answers
	refused   atomic.Pointer[[]string] // files of templates
}

// held is how many tasks the worker holds.
func (s *status) held() int {
	if o := s.loops.Load(); o != nil {
		return o.Held()
	}
	return 0
}

// isLoopback reports whether only this machine can connect to the address.
func isLoopback(address net.Addr) bool {
	tcp, ok := address.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// mostConnections is how many HTTP may use at once, apart from those of the work.
const mostConnections = 4

// serve answers HTTP until the returned function is called. Without an address it
// does nothing.
func (w *worker) serve(ctx context.Context, database store.Server) (stop func(), err error) {
	if w.Listen == "" {
		return func() {}, nil
	}
	pool, err := database.Open(ctx, "tasker worker http", mostConnections)
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", w.Listen)
	if err != nil {
		pool.Close()
		return nil, fmt.Errorf("%w: server.listen %q: %w", ErrConfig, w.Listen, err)
	}
	s := store.New(pool)
	probe := server.Probe{Store: s, MostLag: w.MostLag, Working: func(context.Context) error {
		if !w.status.takes.Load() {
			return errors.New("it has not started yet, stops, or was declared dead and starts anew")
		}
		return nil
	}}
	if w.live.now().Templates != "" {
		probe.Templates = func() string {
			if refused := w.status.refused.Load(); refused != nil && len(*refused) > 0 {
				return "refused, as they have changed and their versions have been used: " + strings.Join(*refused, ", ")
			}
			return "all are registered"
		}
	}
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
	about := telemetry.Worker{Held: w.status.held, MaxTasks: w.MaxTasks, Takes: w.status.takes.Load}
	if !w.PollOnly {
		about.Listening = w.status.listening.Load
	}
	w.metrics = telemetry.NewMetrics(s, about, w.Logger)
	streams, end := context.WithCancel(context.Background())
	answering := &http.Server{
		Handler: server.Handler(server.Options{
			Probe: probe, Token: w.Token, Metrics: w.metrics.Handler(), Ending: streams, Logger: w.Logger, Loopback: isLoopback(listener.Addr()),
		}),
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, IdleTimeout: time.Minute,
	}
	ended := make(chan error, 1)
	go func() { ended <- answering.Serve(listener) }()
	w.Logger.Info("answering HTTP", "address", listener.Addr().String(), "paths", server.Paths)
	return func() {
		end()
		_ = answering.Close() // who asks, asks again
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			w.Logger.Warn("HTTP had ended", "error", err)
		}
		pool.Close()
	}, nil
}
