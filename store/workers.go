package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/taskerhq/tasker"
)

// RegisterWorker enters a worker. client is the id of its River client.
func (s *Store) RegisterWorker(ctx context.Context, name, client string, details any) (int64, error) {
	doc, err := json.Marshal(details)
	if err != nil {
		return 0, fmt.Errorf("register worker: %w", err)
	}
	var id int64
	err = s.pool.QueryRow(ctx, `INSERT INTO tasker.workers (name, client_id, details) VALUES ($1, $2, $3) RETURNING worker_id`,
		name, client, doc).Scan(&id)
	if err != nil {
		return 0, fmt.Errorf("register worker: %w", err)
	}
	return id, nil
}

// Beat says that the worker is alive and, in the same round trip, declares dead
// the workers that have not said so for the length of lease. It returns how
// many tasks that set free, and ErrWorkerDead when this worker has itself been
// declared dead.
func (s *Store) Beat(ctx context.Context, worker int64, lease time.Duration) (freed int, err error) {
	var (
		batch pgx.Batch
		alive bool
	)
	batch.Queue(`WITH beat AS (UPDATE tasker.workers SET last_seen_at = clock_timestamp() WHERE worker_id = $1 AND state = 'alive' RETURNING 1)
		SELECT EXISTS (SELECT FROM beat)`, worker).QueryRow(func(row pgx.Row) error { return row.Scan(&alive) })
	batch.Queue(`SELECT tasker.reap_workers($1)`, lease).QueryRow(func(row pgx.Row) error { return row.Scan(&freed) })
	if err := s.pool.SendBatch(ctx, &batch).Close(); err != nil {
		return 0, fmt.Errorf("beat: %w", translate(err))
	}
	if !alive {
		return freed, ErrWorkerDead
	}
	return freed, nil
}

// StopWorker signs the worker off and sets free what it still holds.
func (s *Store) StopWorker(ctx context.Context, worker int64, client string) error {
	_, err := s.pool.Exec(ctx, `WITH stopped AS (UPDATE tasker.workers SET state = 'stopped' WHERE worker_id = $1 AND state = 'alive' RETURNING 1)
		SELECT tasker.release_worker($1, $2) FROM stopped`, worker, client)
	if err != nil {
		return fmt.Errorf("sign worker %d off: %w", worker, err)
	}
	return nil
}

// HandledElsewhere reports whether another living worker has one of the Go
// handlers.
func (s *Store) HandledElsewhere(ctx context.Context, worker int64, handlers []string) (bool, error) {
	var handled bool
	err := s.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM tasker.workers
		WHERE state = 'alive' AND worker_id <> $1 AND details -> 'handlers' ?| $2)`, worker, handlers).Scan(&handled)
	if err != nil {
		return false, fmt.Errorf("find a worker with the handlers: %w", err)
	}
	return handled, nil
}

// ReapProcesses reports as lost the attempts of Sidekiq processes that have
// been silent for so long, and returns how many.
func (s *Store) ReapProcesses(ctx context.Context, silence time.Duration) (lost int, err error) {
	if err := s.pool.QueryRow(ctx, `SELECT tasker.reap_processes($1)`, silence).Scan(&lost); err != nil {
		return 0, fmt.Errorf("find lost processes: %w", err)
	}
	return lost, nil
}

// Unstarted lists attempts that were pushed to Redis longer than age ago and
// that no process has started, oldest first.
func (s *Store) Unstarted(ctx context.Context, age time.Duration, limit int) ([]tasker.Dispatch, error) {
	rows, err := s.pool.Query(ctx, `SELECT d.task_id, d.step_id, d.attempt, coalesce(ts.handler_class, ''), d.queue
		FROM tasker.dispatches d JOIN tasker.steps s USING (step_id) JOIN tasker.tasks t ON t.task_id = d.task_id
		JOIN tasker.template_steps ts ON ts.template_id = t.template_id AND ts.position = s.position
		WHERE d.started_at IS NULL AND d.failure IS NULL AND d.pushed_at < clock_timestamp() - $1::interval
		ORDER BY d.pushed_at LIMIT $2`, age, limit)
	if err != nil {
		return nil, fmt.Errorf("find unstarted attempts: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[tasker.Dispatch])
	if err != nil {
		return nil, fmt.Errorf("find unstarted attempts: %w", err)
	}
	return list, nil
}

// Repush marks attempts as pushed now and returns those that are still
// unstarted and that nobody else has marked since age ago: push these.
func (s *Store) Repush(ctx context.Context, steps []int64, age time.Duration) (map[int64]bool, error) {
	rows, err := s.pool.Query(ctx, `UPDATE tasker.dispatches SET pushed_at = clock_timestamp()
		WHERE step_id = ANY ($1) AND started_at IS NULL AND failure IS NULL AND pushed_at < clock_timestamp() - $2::interval
		RETURNING step_id`, steps, age)
	if err != nil {
		return nil, fmt.Errorf("mark attempts as pushed: %w", err)
	}
	won := map[int64]bool{}
	var id int64
	if _, err := pgx.ForEachRow(rows, []any{&id}, func() error { won[id] = true; return nil }); err != nil {
		return nil, fmt.Errorf("mark attempts as pushed: %w", err)
	}
	return won, nil
}

// Listen calls rung with the steps whose reports were committed, until ctx ends
// or the connection breaks. ready is called once it listens: what was committed
// before has to be looked up.
func (s *Store) Listen(ctx context.Context, worker int64, ready func(), rung func(steps []int64)) error {
	conn, err := pgx.ConnectConfig(ctx, s.pool.Config().ConnConfig.Copy())
	if err != nil {
		return fmt.Errorf("listen for reports: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, `LISTEN "tasker.worker_`+strconv.FormatInt(worker, 10)+`"`); err != nil {
		return fmt.Errorf("listen for reports: %w", err)
	}
	ready()
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return fmt.Errorf("listen for reports: %w", err)
		}
		var steps []int64
		for word := range strings.SplitSeq(n.Payload, ",") {
			if id, err := strconv.ParseInt(word, 10, 64); err == nil {
				steps = append(steps, id)
			}
		}
		rung(steps)
	}
}
