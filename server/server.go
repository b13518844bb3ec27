// Package server is what a worker answers over HTTP: whether it lives and is ready,
// how tasks do, what happens, and metrics.
package server

import (
	"cmp"
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/taskerhq/tasker/analytics"
	"github.com/taskerhq/tasker/store"
)

// Options say what is answered.
type Options struct {
	Probe
	Token   string          // that all but probes have to show; empty: none
	Metrics http.Handler    // nil: there are none
	Ending  context.Context // ends when streams have to
	Logger  *slog.Logger

	Loopback bool          // whether only this machine can connect; other Hosts are refused then
	Slowest  time.Duration // how long a client may take to receive an answer, or a part of a stream; default 30 s
}

func (o Options) withDefaults() Options {
	o.Slowest = cmp.Or(o.Slowest, 30*time.Second)
	return o
}

// Paths are those that are answered.
const Paths = "/health/live /health/ready /health/status /analytics/performance /analytics/bottlenecks /analytics/tasks/ID /events /metrics"

type server struct {
	Options
	asking    chan struct{} // holds a token for each question to the database that may be open at once
	streaming chan struct{} // the same for streams

	mu      sync.Mutex
	answers map[question]*remembered // the last ones
}

const (
	mostAsking    = 2
	mostStreaming = 16
	patience      = 10 * time.Second // for an answer of the database
)

// Handler answers GET requests. /health/live and /health/ready ask nobody who is
// there: they are for probes. All else wants the token, where one is set, as
// "Authorization: Bearer TOKEN".
func Handler(o Options) http.Handler {
	s := &server{Options: o.withDefaults(), asking: make(chan struct{}, mostAsking), streaming: make(chan struct{}, mostStreaming), answers: map[question]*remembered{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health/live", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]any{"alive": true, "service": "tasker", "timestamp": time.Now().UTC()})
	})
	mux.HandleFunc("GET /health/ready", func(w http.ResponseWriter, r *http.Request) {
		ready := s.Ready(r.Context())
		code := http.StatusOK
		if !ready.Ready {
			code = http.StatusServiceUnavailable
		}
		answer(w, code, ready)
	})
	mux.Handle("GET /health/status", s.guarded(s.asks(func(ctx context.Context, _ *http.Request) (any, error) { return s.currentStatus(ctx) })))
	mux.Handle("GET /analytics/performance", s.guarded(s.asks(func(ctx context.Context, r *http.Request) (any, error) {
		scope, err := scopeOf(r.URL.Query())
		if err != nil {
			return nil, err
		}
		return s.remember(ctx, "performance", scope, func(ctx context.Context) (any, error) { return analytics.PerformanceOf(ctx, o.Store, scope) })
	})))
	mux.Handle("GET /analytics/bottlenecks", s.guarded(s.asks(func(ctx context.Context, r *http.Request) (any, error) {
		scope, err := scopeOf(r.URL.Query())
		if err != nil {
			return nil, err
		}
		return s.remember(ctx, "bottlenecks", scope, func(ctx context.Context) (any, error) { return analytics.BottlenecksOf(ctx, o.Store, scope) })
	})))
	mux.Handle("GET /analytics/tasks/{id}", s.guarded(s.asks(func(ctx context.Context, r *http.Request) (any, error) {
		id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
		if err != nil || id < 1 {
			return nil, &requestError{fmt.Sprintf("a task's id is a number from 1, not %q", r.PathValue("id"))}
		}
		return analytics.TaskOf(ctx, o.Store, id)
	})))
	mux.Handle("GET /events", s.guarded(http.HandlerFunc(s.stream)))
	if o.Metrics != nil {
		mux.Handle("GET /metrics", s.guarded(o.Metrics))
	}
	return s.checked(mux)
}

// requestError is a request that can't be answered as it is.
type requestError struct{ message string }

func (e *requestError) Error() string { return e.message }

// guarded asks for the token.
func (s *server) guarded(h http.Handler) http.Handler {
	if s.Token == "" {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		shown, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok || subtle.ConstantTimeCompare([]byte(shown), []byte(s.Token)) != 1 {
			w.Header().Set("WWW-Authenticate", "Bearer")
			refuse(w, http.StatusUnauthorized, "this needs the header Authorization: Bearer TOKEN, with the worker's server.token")
			return
		}
		h.ServeHTTP(w, r)
	})
}

// asks answers a question by JSON. Few are asked at once, so that the questions do not
// slow the work down. The place is free again before the answer is written: a client that
// does not read keeps none.
func (s *server) asks(question func(ctx context.Context, r *http.Request) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), patience)
		defer cancel()
		select {
		case s.asking <- struct{}{}:
		case <-ctx.Done():
			refuse(w, http.StatusServiceUnavailable, "others ask at the same time; try again later")
			return
		}
		said, err := func() (any, error) {
			defer func() { <-s.asking }() // also when the question panics
			return question(ctx, r)
		}()
		var bad *requestError
		switch {
		case err == nil:
			answer(w, http.StatusOK, said)
		case errors.As(err, &bad):
			refuse(w, http.StatusBadRequest, bad.message)
		case errors.Is(err, store.ErrNotFound):
			refuse(w, http.StatusNotFound, err.Error())
		case ctx.Err() != nil:
			refuse(w, http.StatusServiceUnavailable, fmt.Sprintf("the database gave no answer within %s", patience))
		default:
			s.Logger.Error("a question over HTTP could not be answered", "path", r.URL.Path, "error", err)
			refuse(w, http.StatusInternalServerError, "the database could not be read; the worker's log says why")
		}
	})
}

// scopeOf reads period, namespace and name.
func scopeOf(q url.Values) (store.Scope, error) {
	c := store.Scope{Namespace: q.Get("namespace"), Name: q.Get("name"), Period: 24 * time.Hour}
	if text := q.Get("period"); text != "" {
		d, err := ParsePeriod(text)
		if err != nil {
			return c, &requestError{"period: " + err.Error()}
		}
		c.Period = d
	}
	return c, nil
}

// ParsePeriod reads a period such as 90m, 4h or 7d.
func ParsePeriod(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if days, ok := strings.CutSuffix(text, "d"); ok {
		var n int
		if n, err = strconv.Atoi(days); err == nil && n <= 36500 {
			d = time.Duration(n) * 24 * time.Hour
		}
	}
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("a period is such as 90m, 4h or 7d, up to 36500d, not %q", text)
	}
	return d, nil
}

func refuse(w http.ResponseWriter, status int, why string) {
	answer(w, status, map[string]string{"error": why})
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // who asked has gone away
}
