// Command tasker runs this repository's worker as an engine of the comparison.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/bench/contest"
	"github.com/taskerhq/tasker/handler"
	"github.com/taskerhq/tasker/migrations"
	"github.com/taskerhq/tasker/orchestrator"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/template"
	"github.com/taskerhq/tasker/worker"
)

func main() {
	parkAfter := flag.Duration("park-after", 0, "how long to keep a task that only waits; 0: the default")
	flag.Parse()
	contest.Serve(func(ctx context.Context, databaseURL string) (contest.Engine, func() error, error) {
		return start(ctx, databaseURL, *parkAfter)
	})
}

type engine struct {
	pool  *pgxpool.Pool
	store *store.Store
	ended atomic.Int64 // tasks up to this one have ended
}

func start(ctx context.Context, databaseURL string, parkAfter time.Duration) (contest.Engine, func() error, error) {
	pool, err := store.Open(ctx, databaseURL, "bench", 2)
	if err != nil {
		return nil, nil, err
	}
	if err := migrations.Up(ctx, pool); err != nil {
		return nil, nil, err
	}
	worker.TuneMemory()
	handlers := handler.NewRegistry()
	handlers.Register("bench.noop", func(context.Context, *tasker.Attempt) (any, error) {
		return json.RawMessage(contest.Result), nil
	})
	handlers.Register("bench.later", func(context.Context, *tasker.Attempt) (any, error) {
		return nil, handler.RetryAfter(59*time.Minute, errors.New("later"))
	})
	working, end := context.WithCancel(context.WithoutCancel(ctx))
	started, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- worker.Run(working, worker.Config{
			DatabaseURL: databaseURL, Handlers: handlers, Started: func(int64) { close(started) }, Live: worker.Live{Tuning: orchestrator.Tuning{ParkAfter: parkAfter}},
			Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		})
	}()
	select {
	case <-started:
	case err := <-ended:
		end()
		return nil, nil, errors.Join(err, errors.New("the worker ended before it started"))
	}
	return &engine{pool: pool, store: store.New(pool)}, func() error {
		end()
		err := <-ended
		pool.Close()
		return err
	}, nil
}

func (e *engine) Prepare(ctx context.Context, o contest.Order) error {
	t, err := template.Parse(o.Name(), []byte(o.YAML("bench", "handler: bench.noop")), template.Options{})
	if err != nil {
		return err
	}
	_, err = e.store.RegisterTemplate(ctx, t, template.Checksum(t))
	return err
}

// together is how many tasks are handed in by one INSERT, as many as of DBOS by
// one transaction.
const together = 50

func (e *engine) Enqueue(ctx context.Context, o contest.Order, n int) error {
	for ; n > 0; n -= together {
		if _, err := e.pool.Exec(ctx, `INSERT INTO tasker.tasks (namespace, name, context) SELECT 'bench', $1, '{"order_id": 7}' FROM generate_series(1, $2)`,
			o.Name(), min(together, n)); err != nil {
			return err
		}
	}
	return nil
}

func (e *engine) Open(ctx context.Context, _ contest.Order) (open int, err error) {
	// From the first that may be open: under a snapshot that is held, the index of open
	// tasks has all that ended since.
	if err = e.pool.QueryRow(ctx, `SELECT /* bench */ count(*) FROM (SELECT FROM tasker.tasks WHERE state IN ('pending', 'in_progress') AND task_id > $1 LIMIT 1) first`, e.ended.Load()).Scan(&open); err != nil || open > 0 {
		return open, err
	}
	var last int64
	if err = e.pool.QueryRow(ctx, `SELECT /* bench */ coalesce(max(task_id), 0) FROM tasker.tasks`).Scan(&last); err == nil {
		e.ended.Store(last)
	}
	return 0, err
}
