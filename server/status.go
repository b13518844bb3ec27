package server

import (
	"context"
	"fmt"
	"time"

	"github.com/taskerhq/tasker/analytics"
	"github.com/taskerhq/tasker/store"
)

// Status is how the whole system does.
type Status struct {
	Healthy bool     `json:"healthy"`
	Status  string   `json:"status"`  // healthy or unhealthy
	Reasons []string `json:"reasons"` // why it is not

	Metrics struct {
		Tasks   store.TaskCounts `json:"tasks"`
		Steps   store.StepCounts `json:"steps"`
		Retries struct {
			Retryable int64 `json:"retryable_errors"`  // attempts of the last hour after which another followed
			Exhausted int64 `json:"exhausted_retries"` // steps of the last hour that failed after several
			InBackoff int64 `json:"in_backoff"`        // steps that wait for another attempt, among the oldest open tasks
		} `json:"retries"`
	} `json:"metrics"`
	Database    store.ConnectionCounts         `json:"database"`
	Performance map[string]*analytics.Overview `json:"performance_analytics"`
	AsOf        time.Time                      `json:"as_of"` // of the performance

	Cached   bool    `json:"cached"`
	Duration float64 `json:"generation_duration"` // seconds
}

const (
	mostConnections = 0.9 // of those that the server has
	mostErrors      = 0.5 // of the tasks, and of the attempts, that ended in the last hour
	fewest          = 20  // from which on a rate says something
)

// StatusOf looks at the whole system. Counts of what is open go up to 50,000.
func StatusOf(ctx context.Context, s *store.Store) (*Status, error) {
	began := time.Now()
	st := &Status{Reasons: []string{}}
	var err error
	if st.Metrics.Tasks, st.Metrics.Steps, st.Database, err = s.Counts(ctx); err != nil {
		return nil, err
	}
	p, err := analytics.PerformanceOf(ctx, s, store.Scope{Period: time.Hour})
	if err != nil {
		return nil, err
	}
	st.Performance, st.AsOf = p.Periods, p.AsOf
	waiting, err := s.WaitingNow(ctx, 2000)
	if err != nil {
		return nil, err
	}
	for _, w := range waiting {
		if w.Reason == "retry" {
			st.Metrics.Retries.InBackoff += w.Tasks
		}
	}
	var ended, failed int64
	for _, t := range p.Templates {
		for _, step := range t.Steps {
			o := step.Outcomes
			st.Metrics.Retries.Retryable += o.Retried
			st.Metrics.Retries.Exhausted += o.Exhausted
			ended += o.Completed + o.Failed + o.Retried
			failed += o.Failed + o.Retried
		}
	}
	if share := st.Database.Utilization; share > mostConnections {
		st.Reasons = append(st.Reasons, fmt.Sprintf("%.0f %% of the server's connections are in use; the most is %.0f %%", share*100, mostConnections*100))
	}
	if hour := p.Periods["1h"]; hour.Ended >= fewest && hour.Error > mostErrors {
		st.Reasons = append(st.Reasons, fmt.Sprintf("%.0f %% of the tasks that ended in the last hour failed; the most is %.0f %%", hour.Error*100, mostErrors*100))
	}
	if ended >= fewest && float64(failed) > mostErrors*float64(ended) {
		st.Reasons = append(st.Reasons, fmt.Sprintf("%.0f %% of the attempts that ended in the last hour failed; the most is %.0f %%", 100*float64(failed)/float64(ended), mostErrors*100))
	}
	st.Healthy = len(st.Reasons) == 0
	st.Status = map[bool]string{true: "healthy", false: "unhealthy"}[st.Healthy]
	st.Duration = time.Since(began).Seconds()
	return st, nil
}
