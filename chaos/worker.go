//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/handler"
	"github.com/taskerhq/tasker/worker"
)

// The names of the Go handlers. Two, so that a worker can lack one.
var goHandlers = []string{"chaos.work", "chaos.more_work"}

// work is a step's handler_config: how long it takes, and how it fails.
type work struct {
	Seconds   float64 `json:"seconds"`
	Times     int     `json:"times"`
	Permanent bool    `json:"permanent"`
}

// runWorker is a program as a team would write it that has Go handlers of its
// own. It is this program, started as a worker.
func runWorker(ctx context.Context, without string, hasty bool) error {
	pool, err := pgxpool.New(ctx, os.Getenv("TASKER_DATABASE_URL"))
	if err != nil {
		return err
	}
	defer pool.Close()
	handlers := handler.NewRegistry()
	for _, name := range goHandlers {
		if name != without {
			handlers.Register(name, func(ctx context.Context, a *tasker.Attempt) (any, error) { return doWork(ctx, pool, a) })
		}
	}
	c := worker.Config{
		DatabaseURL: os.Getenv("TASKER_DATABASE_URL"), RedisURL: os.Getenv("TASKER_REDIS_URL"), Handlers: handlers,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	c.MaxLosses = manyLosses
	if hasty { // gives up what only waits, again and again
		c.ParkAfter, c.HoldFor = 20*time.Millisecond, 20*time.Millisecond
	}
	// A database that is away at the start is away for a while: supervisors start
	// programs again, and so does this.
	for {
		err := worker.Run(ctx, c)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if strings.Contains(err.Error(), "bad setting") {
			return err
		}
		slog.Error("the worker ended and is started again", "error", err)
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return nil
		}
	}
}

// manyLosses is more than chaos brings about: what is tried is whether work
// survives, not when it is given up.
const manyLosses = 500

func doWork(ctx context.Context, pool *pgxpool.Pool, a *tasker.Attempt) (any, error) {
	var w work
	if err := json.Unmarshal(a.Config, &w); err != nil {
		return nil, err
	}
	select {
	case <-time.After(time.Duration(w.Seconds * float64(time.Second))): // the work
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if w.Permanent {
		return nil, handler.Permanent("told_to", errors.New("told to"))
	}
	if a.Used <= w.Times {
		return nil, errors.New("told to")
	}
	if _, err := pool.Exec(ctx, `INSERT INTO chaos.ledger (step_id, attempt, kind) VALUES ($1, $2, 'go')`, a.StepID, a.Number); err != nil {
		return nil, fmt.Errorf("write into the ledger: %w", err)
	}
	return map[string]int{"attempt": a.Number}, nil
}
