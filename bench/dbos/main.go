// Command dbos runs DBOS Transact as an engine of the comparison. A task is one
// workflow; its steps are checkpoints, those side by side goroutines of DBOS's
// own. No step is handed over through the database: the process that starts a
// workflow runs it to its end.
//
//	queue    workflows wait in a queue that is polled each 10 ms
//	direct   no queue: whoever wants a task runs it
//	default  the queue as it is when nothing is set: polled each second
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/dbos-inc/dbos-transact-golang/dbos"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/taskerhq/tasker/bench/contest"
)

const (
	connections = 20 // DBOS's own default
	workers     = 100
	// How tasks are handed in: there is no call for many, so that several callers
	// share them, each with some in a transaction, which saves commits.
	callers, together = 8, 50
)

func main() {
	mode := flag.String("mode", "queue", "queue, direct or default")
	flag.Parse()
	contest.Serve(func(ctx context.Context, databaseURL string) (contest.Engine, func() error, error) {
		return start(ctx, databaseURL, *mode)
	})
}

type engine struct {
	dbos  dbos.Context
	pool  *pgxpool.Pool // DBOS's
	asks  *pgxpool.Pool // asks what is open, besides the engine
	queue string        // empty: direct
}

func start(ctx context.Context, databaseURL, mode string) (contest.Engine, func() error, error) {
	pool, err := open(ctx, databaseURL, connections)
	if err != nil {
		return nil, nil, err
	}
	asks, err := open(ctx, databaseURL, 1)
	if err != nil {
		return nil, nil, err
	}
	var level slog.LevelVar
	level.Set(slog.LevelWarn)
	d, err := dbos.NewContext(context.WithoutCancel(ctx), dbos.Config{AppName: "bench", SystemDBPool: pool, ApplicationVersion: "1",
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: &level}))})
	if err != nil {
		return nil, nil, err
	}
	dbos.RegisterWorkflow(d, run, dbos.WithWorkflowName("run"))
	e := &engine{d, pool, asks, "bench"}
	switch mode {
	case "direct":
		e.queue = ""
	case "default":
		_, err = dbos.RegisterQueue(d, e.queue, dbos.WithWorkerConcurrency(workers))
	case "queue":
		_, err = dbos.RegisterQueue(d, e.queue, dbos.WithWorkerConcurrency(workers), dbos.WithQueueBasePollingInterval(10*time.Millisecond))
	default:
		err = fmt.Errorf("-mode is queue, direct or default, not %q", mode)
	}
	if err == nil {
		err = dbos.Launch(d)
	}
	if err != nil {
		return nil, nil, err
	}
	return e, func() error {
		err := e.failed(context.WithoutCancel(ctx))
		level.Set(slog.LevelError + 1) // polls that a shutdown interrupts are logged as errors
		dbos.Shutdown(d, 5*time.Second)
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

// run is the workflow of all shapes.
func run(ctx dbos.Context, o contest.Order) (string, error) {
	one := func() error {
		_, err := dbos.RunAsStep(ctx, step, dbos.WithStepName("step"))
		return err
	}
	aside := 0 // steps side by side, between a first and a last
	switch o.Shape {
	case contest.Chain, contest.Single:
		for range o.StepsPerTask() {
			if err := one(); err != nil {
				return "", err
			}
		}
		return "done", nil
	case contest.Diamond:
		aside = 2
	case contest.Fan:
		aside = o.Size
	}
	if err := one(); err != nil {
		return "", err
	}
	outcomes := make([]<-chan dbos.StepOutcome[json.RawMessage], aside)
	for i := range outcomes {
		var err error
		if outcomes[i], err = dbos.Go(ctx, step); err != nil {
			return "", err
		}
	}
	for _, outcome := range outcomes {
		if o := <-outcome; o.Err != nil {
			return "", o.Err
		}
	}
	return "done", one()
}

func step(context.Context) (json.RawMessage, error) { return json.RawMessage(contest.Result), nil }

// Prepare has nothing to do: one workflow does for all shapes.
func (e *engine) Prepare(context.Context, contest.Order) error { return nil }

func (e *engine) Enqueue(ctx context.Context, o contest.Order, n int) error {
	if e.queue == "" {
		return e.runAll(o, n)
	}
	if n == 1 {
		_, err := dbos.Enqueue[string](e.dbos, e.queue, "run", o)
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(callers)
	for at := 0; at < n; at += together {
		g.Go(func() error { return e.enqueue(ctx, o, min(together, n-at)) })
	}
	return g.Wait()
}

// enqueue hands in n tasks in one transaction.
func (e *engine) enqueue(ctx context.Context, o contest.Order, n int) error {
	tx, err := e.pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // after Commit: nothing
	for range n {
		if _, err := dbos.Enqueue[string](e.dbos, e.queue, "run", o, dbos.WithEnqueueTransaction(tx)); err != nil {
			return err
		}
	}
	return tx.Commit(ctx)
}

// runAll runs n workflows, some at a time.
func (e *engine) runAll(o contest.Order, n int) error {
	var g errgroup.Group
	g.SetLimit(workers)
	for range n {
		g.Go(func() error {
			h, err := dbos.RunWorkflow(e.dbos, run, o)
			if err != nil {
				return err
			}
			_, err = h.GetResult()
			return err
		})
	}
	return g.Wait()
}

func (e *engine) Open(ctx context.Context, _ contest.Order) (open int, err error) {
	err = e.asks.QueryRow(ctx, `SELECT /* bench */ count(*) FROM dbos.workflow_status WHERE status IN ('ENQUEUED', 'PENDING')`).Scan(&open)
	return open, err
}

// failed is an error when a workflow has not ended well: what it cost says nothing.
func (e *engine) failed(ctx context.Context) error {
	var n int
	if err := e.asks.QueryRow(ctx, `SELECT /* bench */ count(*) FROM dbos.workflow_status WHERE status NOT IN ('SUCCESS', 'ENQUEUED', 'PENDING')`).Scan(&n); err != nil {
		return err
	}
	if n > 0 {
		return fmt.Errorf("%d workflows failed", n)
	}
	return nil
}
