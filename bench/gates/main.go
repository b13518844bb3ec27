// Command gates measures what a limit costs that is set and never reached: the
// same load (500 tasks of 10 sequential Go steps) with no gate, with a gate of
// another template, with a limit on the template, and with a limit and a rate.
// The four take turns, so that a noisy minute falls on all. fsync and
// synchronous_commit are on. Run it from the root of the repository, on a quiet
// machine:
//
//	go run ./bench/gates
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskerhq/tasker/bench/stage"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/worker"
)

const steps = 10

var series = []struct {
	name, scope, gate string
	limit             store.Limit
}{
	{name: "no gate"},
	{"a gate elsewhere", "template", "bench/other", store.Limit{MaxAttempts: new(1)}},
	{"a limit", "template", "bench/chain", store.Limit{MaxAttempts: new(100_000)}},
	{"a limit and a rate", "template", "bench/chain", store.Limit{MaxAttempts: new(100_000), PerSecond: new(1e6), Burst: new(1e6)}},
}

func main() {
	rounds := flag.Int("rounds", 7, "runs of each series")
	tasks := flag.Int("tasks", 500, "tasks per run")
	flag.Parse()
	stage.Main("gates", func(ctx context.Context) error { return measure(ctx, *rounds, *tasks) })
}

func measure(ctx context.Context, rounds, tasks int) (err error) {
	servers, err := stage.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, servers.Close()) }()
	pool, s := servers.Pool, store.New(servers.Pool)
	for _, name := range []string{"chain", "other"} {
		var yaml strings.Builder
		fmt.Fprintf(&yaml, "name: %s\nnamespace_name: bench\nstep_templates:\n  - {name: s0, handler: tasker.echo}\n", name)
		for i := 1; i < steps; i++ {
			fmt.Fprintf(&yaml, "  - {name: s%d, handler: tasker.echo, depends_on_step: s%d}\n", i, i-1)
		}
		if err := servers.Register(ctx, name, yaml.String()); err != nil {
			return err
		}
	}
	working, end := context.WithCancel(ctx)
	defer end()
	started, ended := make(chan int64, 1), make(chan error, 1)
	go func() {
		ended <- worker.Run(working, worker.Config{DatabaseURL: servers.DatabaseURL(), Logger: slog.New(slog.DiscardHandler), Started: func(id int64) { started <- id }})
	}()
	select {
	case <-started:
	case err := <-ended:
		return err
	}

	rates := make([][]float64, len(series))
	for round := range rounds + 1 {
		for i, x := range series {
			if x.scope != "" {
				if err := s.SetLimit(ctx, store.GateKey{Scope: x.scope, Name: x.gate}, x.limit, store.Operator{}); err != nil {
					return err
				}
			}
			took, err := run(ctx, pool, s, tasks)
			if err != nil {
				return err
			}
			if round > 0 { // the first one warms up
				rates[i] = append(rates[i], float64(tasks*steps)/took.Seconds())
			}
			if x.scope != "" {
				if err := s.SetLimit(ctx, store.GateKey{Scope: x.scope, Name: x.gate}, store.Limit{}, store.Operator{}); err != nil {
					return err
				}
			}
		}
		fmt.Fprintf(os.Stderr, "round %d of %d\n", round, rounds)
	}
	fmt.Printf("%-20s %10s %10s %10s %9s\n", "steps/s", "min", "median", "max", "ratio")
	without := stage.SpreadOf(rates[0])
	for i, x := range series {
		rate := stage.SpreadOf(rates[i])
		fmt.Printf("%-20s %10.0f %10.0f %10.0f %9.2f\n", x.name, rate.Least, rate.Median, rate.Most, rate.Median/without.Median)
	}
	end()
	return <-ended
}

// run enqueues the tasks in one statement and waits for the last of them.
func run(ctx context.Context, pool *pgxpool.Pool, s *store.Store, tasks int) (time.Duration, error) {
	begun := time.Now()
	if _, err := pool.Exec(ctx, `INSERT INTO tasker.tasks (namespace, name) SELECT 'bench', 'chain' FROM generate_series(1, $1)`, tasks); err != nil {
		return 0, fmt.Errorf("enqueue: %w", err)
	}
	for {
		open, err := s.OpenTasksByVersion(ctx, "bench", "chain")
		if err != nil || len(open) == 0 {
			return time.Since(begun), err
		}
		time.Sleep(2 * time.Millisecond) // asking more often would be load of its own
	}
}
