package store

import (
	"context"
	"fmt"
	"time"

	"github.com/taskerhq/tasker/migrations"
)

// Ping asks the database for an answer.
func (s *Store) Ping(ctx context.Context) error {
	if err := s.pool.Ping(ctx); err != nil {
		return fmt.Errorf("reach the database: %w", err)
	}
	return nil
}

// CheckSchema returns an error when the database is not migrated, or newer than
// this binary.
func (s *Store) CheckSchema(ctx context.Context) error { return migrations.Check(ctx, s.pool) }

// Backlog is what waits for a worker to take it.
type Backlog struct {
	Due     int           // River jobs that may run and that no worker has fetched, counted up to 10,000
	Oldest  time.Duration // since when the first of them may run
	Workers int           // that are alive
}

// Backlog looks at what waits.
func (s *Store) Backlog(ctx context.Context) (*Backlog, error) {
	var b Backlog
	var oldest float64
	err := s.pool.QueryRow(ctx, `SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(j.scheduled_at)), 0)::float8,
			(SELECT count(*) FROM tasker.workers w WHERE w.state = 'alive' AND w.last_seen_at > now() - 2 * w.lease)
		FROM (SELECT d.scheduled_at FROM tasker.river_job d
			WHERE d.state = 'available' AND d.queue = 'default' AND d.scheduled_at <= now() ORDER BY d.priority, d.scheduled_at, d.id LIMIT 10000) j`).
		Scan(&b.Due, &oldest, &b.Workers)
	if err != nil {
		return nil, fmt.Errorf("look at what waits: %w", err)
	}
	b.Oldest = time.Duration(oldest * float64(time.Second))
	return &b, nil
}

// countMost is how far open and failed tasks, and attempts, are counted.
const countMost = 50_000

// TaskCounts is how many tasks there are. What is open or in error is counted up
// to 50,000.
type TaskCounts struct {
	Total      int64 `json:"total"` // about, as Postgres estimates it
	Pending    int64 `json:"pending"`
	InProgress int64 `json:"in_progress"`
	Complete   int64 `json:"complete"` // of the last 24 hours
	Error      int64 `json:"error"`
	Cancelled  int64 `json:"cancelled"` // of the last 24 hours
}

// StepCounts is how many attempts are out at Sidekiq, and how many steps there are.
type StepCounts struct {
	Total      int64 `json:"total"` // about, as Postgres estimates it
	Enqueued   int64 `json:"enqueued"`
	InProgress int64 `json:"in_progress"`
	Complete   int64 `json:"complete"` // of the last 24 hours
	Error      int64 `json:"error"`    // for good, of the last 24 hours
}

// ConnectionCounts is how many connections the server has.
type ConnectionCounts struct {
	Active      int64   `json:"active_connections"`
	Most        int64   `json:"max_connections"`
	Utilization float64 `json:"connection_utilization"` // 0 to 1
}

// Counts counts tasks, steps and connections.
func (s *Store) Counts(ctx context.Context) (t TaskCounts, p StepCounts, c ConnectionCounts, err error) {
	err = s.pool.QueryRow(ctx, `
		SELECT greatest((SELECT reltuples FROM pg_class WHERE oid = 'tasker.tasks'::regclass), 0)::bigint,
		       open.pending, open.n - open.pending,
		       coalesce(of_day.complete, 0), (SELECT count(*) FROM (SELECT FROM tasker.tasks WHERE state = 'error' LIMIT $1) f), coalesce(of_day.cancelled, 0),
		       greatest((SELECT reltuples FROM pg_class WHERE oid = 'tasker.steps'::regclass), 0)::bigint,
		       out.running, out.n - out.running, coalesce(of_day.steps_complete, 0), coalesce(of_day.steps_failed, 0),
		       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'), current_setting('max_connections')::bigint
		FROM (SELECT count(*) AS n, count(*) FILTER (WHERE o.state = 'pending') AS pending
		      FROM (SELECT state FROM tasker.tasks WHERE state IN ('pending', 'in_progress') LIMIT $1) o) open,
		     (SELECT count(*) AS n, count(*) FILTER (WHERE d.started_at IS NOT NULL) AS running FROM (SELECT started_at FROM tasker.dispatches LIMIT $1) d) out,
		     (SELECT sum(completed) FILTER (WHERE step IS NULL)::bigint AS complete, sum(cancelled) FILTER (WHERE step IS NULL)::bigint AS cancelled,
		             sum(completed) FILTER (WHERE step IS NOT NULL)::bigint AS steps_complete, sum(failed) FILTER (WHERE step IS NOT NULL)::bigint AS steps_failed
		      FROM tasker.outcomes('24 hours')) of_day`, countMost).
		Scan(&t.Total, &t.Pending, &t.InProgress, &t.Complete, &t.Error, &t.Cancelled, &p.Total, &p.InProgress, &p.Enqueued, &p.Complete, &p.Error, &c.Active, &c.Most)
	if err != nil {
		return t, p, c, fmt.Errorf("count tasks: %w", err)
	}
	c.Utilization = float64(c.Active) / float64(c.Most)
	return t, p, c, nil
}
