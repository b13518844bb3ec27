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
