package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/taskerhq/tasker/store"
)

// Probe is what health is asked about. A function that is nil is not asked.
type Probe struct {
	Store     *store.Store
	Redis     func(ctx context.Context) error // reaches Sidekiq's Redis
	Working   func(ctx context.Context) error // whether this worker takes tasks
	Listening func() error                    // whether notifications are heard
	Templates func() string                   // which are refused; they stop no worker
	MostLag   time.Duration                   // how long the first task that is due may wait for a worker; 0: for ever
	Timeout   time.Duration                   // for all checks together; default 5 s
}

// Check is the answer of one part.
type Check struct {
	Status  string  `json:"status"` // ok or failed
	Message string  `json:"message"`
	Seconds float64 `json:"seconds"` // that it took to find out
}

// Readiness is whether everything is there that a worker needs.
type Readiness struct {
	Ready    bool             `json:"ready"`
	Checks   map[string]Check `json:"checks"`
	Failed   []string         `json:"failed_checks"`
	Message  string           `json:"message"`
	At       time.Time        `json:"timestamp"`
	Duration float64          `json:"check_duration"` // seconds
}

// Ready asks all parts at once.
func (p Probe) Ready(ctx context.Context) *Readiness {
	began := time.Now()
	timeout := cmp.Or(p.Timeout, 5*time.Second)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	r := &Readiness{Checks: map[string]Check{}, Failed: []string{}, At: began.UTC()}
	var mu sync.Mutex
	var asking sync.WaitGroup
	ask := func(part string, question func() (string, error)) {
		asking.Go(func() {
			began := time.Now()
			said, err := question()
			c := Check{Status: "ok", Message: said, Seconds: time.Since(began).Seconds()}
			if err != nil {
				c.Status, c.Message = "failed", err.Error()
				if errors.Is(err, context.DeadlineExceeded) {
					c.Message = fmt.Sprintf("no answer within %s", timeout)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			r.Checks[part] = c
		})
	}
	ask("database", func() (string, error) { return "answers", p.Store.Ping(ctx) })
	ask("migrations", func() (string, error) { return "all applied", p.Store.CheckSchema(ctx) })
	ask("lag", func() (string, error) { return p.lag(ctx) })
	if p.Redis != nil {
		ask("redis", func() (string, error) { return "answers", p.Redis(ctx) })
	}
	if p.Working != nil {
		ask("worker", func() (string, error) { return "takes tasks", p.Working(ctx) })
	}
	if p.Listening != nil {
		ask("listener", func() (string, error) { return "hears notifications", p.Listening() })
	}
	if p.Templates != nil {
		ask("templates", func() (string, error) { return p.Templates(), nil })
	}
	asking.Wait()
	for _, part := range slices.Sorted(maps.Keys(r.Checks)) {
		if r.Checks[part].Status != "ok" {
			r.Failed = append(r.Failed, part)
		}
	}
	r.Ready = len(r.Failed) == 0
	r.Message = "ready"
	if !r.Ready {
		r.Message = "not ready: " + strings.Join(r.Failed, ", ")
	}
	r.Duration = time.Since(began).Seconds()
	return r
}

func (p Probe) lag(ctx context.Context) (string, error) {
	b, err := p.Store.Backlog(ctx)
	if err != nil {
		return "", err
	}
	said := "no task waits for a worker"
	if b.Due > 0 {
		said = fmt.Sprintf("%d tasks are due, the first for %s, with %d workers", b.Due, b.Oldest.Round(time.Millisecond), b.Workers)
		if b.Due == 10_000 {
			said = "at least " + said
		}
	}
	if p.MostLag > 0 && b.Oldest > p.MostLag {
		return "", fmt.Errorf("%s; the most is %s", said, p.MostLag)
	}
	return said, nil
}
