package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// EnqueueMany inserts n tasks without a context in one statement, as any client
// may by SQL, and returns their ids.
func (s *Store) EnqueueMany(ctx context.Context, namespace, name string, n int) ([]int64, error) {
	rows, err := s.pool.Query(ctx, `INSERT INTO tasker.tasks (namespace, name) SELECT $1, $2 FROM generate_series(1, $3) RETURNING task_id`, namespace, name, n)
	if err != nil {
		return nil, fmt.Errorf("enqueue %d tasks of %s/%s: %w", n, namespace, name, translate(err))
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("enqueue %d tasks of %s/%s: %w", n, namespace, name, translate(err))
	}
	return ids, nil
}

// StillOpen returns those of the tasks that are not finished.
func (s *Store) StillOpen(ctx context.Context, tasks []int64) ([]int64, error) {
	rows, err := s.pool.Query(ctx, `SELECT task_id FROM tasker.tasks WHERE task_id = ANY ($1) AND state IN ('pending', 'in_progress')`, tasks)
	if err != nil {
		return nil, fmt.Errorf("count open tasks: %w", err)
	}
	open, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("count open tasks: %w", err)
	}
	return open, nil
}

// Timing is how long tasks took, by the database's clock.
type Timing struct {
	Complete int           // how many of them ended as complete
	All      time.Duration // from the first INSERT to the last end
	Median   time.Duration // of a task, from its INSERT to its end
	P99      time.Duration
}

// TimingOf reads how long the tasks took. They are finished.
func (s *Store) TimingOf(ctx context.Context, tasks []int64) (t Timing, err error) {
	err = s.pool.QueryRow(ctx, `SELECT count(*) FILTER (WHERE state = 'complete'), coalesce(max(finished_at) - min(created_at), '0'),
			coalesce(percentile_disc(0.5) WITHIN GROUP (ORDER BY finished_at - created_at), '0'),
			coalesce(percentile_disc(0.99) WITHIN GROUP (ORDER BY finished_at - created_at), '0')
		FROM tasker.tasks WHERE task_id = ANY ($1)`, tasks).Scan(&t.Complete, &t.All, &t.Median, &t.P99)
	if err != nil {
		return t, fmt.Errorf("read how long tasks took: %w", err)
	}
	return t, nil
}
