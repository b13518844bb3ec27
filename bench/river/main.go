// Command river runs River as an engine of the comparison. River knows jobs and
// no graph: with -graph, chain.go adds one by hand; without, the jobs of a task
// are independent of each other, which is the bound of what River can do.
//
// Settings: tuned (the pause between fetches 1 ms, the poll 10 ms) or, with
// -default, River's own (100 ms, 1 s).
package main

import (
	"context"
	"encoding/json"
	"flag"
	"log/slog"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"

	"github.com/taskerhq/tasker/bench/contest"
)

const connections = 20

func main() {
	graph := flag.Bool("graph", false, "steps wait for each other")
	defaults := flag.Bool("default", false, "River's own settings")
	flag.Parse()
	contest.Serve(func(ctx context.Context, databaseURL string) (contest.Engine, func() error, error) {
		return start(ctx, databaseURL, *graph, *defaults)
	})
}

func start(ctx context.Context, databaseURL string, graph, defaults bool) (contest.Engine, func() error, error) {
	pool, err := open(ctx, databaseURL, connections)
	if err != nil {
		return nil, nil, err
	}
	asks, err := open(ctx, databaseURL, 1) // asks what is open, besides the engine
	if err != nil {
		return nil, nil, err
	}
	driver := riverpgxv5.New(pool)
	migrator, err := rivermigrate.New(driver, nil)
	if err != nil {
		return nil, nil, err
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return nil, nil, err
	}
	queue, workers := river.QueueConfig{MaxWorkers: 100}, river.NewWorkers()
	config := &river.Config{Workers: workers, Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	if !defaults {
		config.FetchCooldown, config.FetchPollInterval = time.Millisecond, 10*time.Millisecond
		if !graph {
			queue.MaxWorkers = 1000 // no transaction of theirs waits for a connection
		}
	}
	config.Queues = map[string]river.QueueConfig{river.QueueDefault: queue}
	river.AddWorker(workers, river.WorkFunc(work))
	steps := &stepWorker{pool: pool}
	river.AddWorker(workers, steps)
	client, err := river.NewClient(driver, config)
	if err != nil {
		return nil, nil, err
	}
	steps.client = client
	var e contest.Engine = &raw{client, asks}
	if graph {
		if _, err := pool.Exec(ctx, tables); err != nil {
			return nil, nil, err
		}
		e = &chain{client, pool, asks}
	}
	if err := client.Start(context.WithoutCancel(ctx)); err != nil {
		return nil, nil, err
	}
	return e, func() error {
		err := client.Stop(context.WithoutCancel(ctx))
		asks.Close()
		pool.Close()
		return err
	}, nil
}

func open(ctx context.Context, databaseURL string, connections int32) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(databaseURL)
	if err != nil {
		return nil, err
	}
	config.MaxConns = connections
	return pgxpool.NewWithConfig(ctx, config)
}

// raw is River alone.
type raw struct {
	client *river.Client[pgx.Tx]
	asks   *pgxpool.Pool
}

type noop struct{}

func (noop) Kind() string { return "noop" }

func work(ctx context.Context, _ *river.Job[noop]) error {
	return river.RecordOutput(ctx, json.RawMessage(contest.Result))
}

func (r *raw) Prepare(context.Context, contest.Order) error { return nil }

func (r *raw) Enqueue(ctx context.Context, o contest.Order, n int) error {
	jobs := make([]river.InsertManyParams, n*o.StepsPerTask())
	for i := range jobs {
		jobs[i].Args = noop{}
	}
	_, err := r.client.InsertManyFast(ctx, jobs)
	return err
}

func (r *raw) Open(ctx context.Context, _ contest.Order) (open int, err error) {
	err = r.asks.QueryRow(ctx, `SELECT /* bench */ count(*) FROM river_job WHERE state IN ('available', 'running', 'retryable', 'scheduled', 'pending')`).Scan(&open)
	return open, err
}
