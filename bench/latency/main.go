// Command latency measures an idle system: how long one task of one step takes
// from the commit of its INSERT to the commit that makes it complete, once with
// a Go handler in the worker and once with a Ruby handler in a real Sidekiq, and
// a task of four Ruby steps in a row.
// And how late a retry is: from the time that it was due, counted from the
// commit of its decision, to the commit of its start. It fails when half of
// them are more than 50 ms late.
//
// Both times are Postgres's own (track_commit_timestamp), so neither polling
// nor the clock of this program is in the figures. fsync and synchronous_commit
// are on. Run it from the root of the repository, on a quiet machine:
//
//	go run ./bench/latency
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskerhq/tasker/bench/stage"
)

var templates = map[string]string{
	"go":   `{name: only, handler: tasker.echo}`,
	"ruby": `{name: only, handler_class: Noop}`,
	"ruby_4": `{name: a, handler_class: Noop}
  - {name: b, handler_class: Noop, depends_on_step: a}
  - {name: c, handler_class: Noop, depends_on_step: b}
  - {name: d, handler_class: Noop, depends_on_step: c}`,
	"retry": `{name: only, handler: tasker.fail, handler_config: {times: 1, retry_after: 0.1}, retry: {backoff: fixed, base_seconds: 1, cap_seconds: 1, retry_after_cap_seconds: 1}}`,
}

// kinds are the templates, and what is measured of each.
var kinds = []struct{ name, of string }{
	{"go", sinceInsert},
	{"ruby", sinceInsert},
	{"ruby_4", sinceInsert},
	{"retry", sinceDue},
}

const (
	sinceInsert = `SELECT CASE WHEN state = 'complete' THEN
			extract(epoch FROM pg_xact_commit_timestamp(xmin) - pg_xact_commit_timestamp($2::text::xid8::xid)) END::float8
		FROM tasker.tasks WHERE task_id = $1`
	sinceDue = `SELECT CASE WHEN t.state = 'complete' AND $2 <> '' THEN
			extract(epoch FROM pg_xact_commit_timestamp(started.xmin) - pg_xact_commit_timestamp(decided.xmin)) - (decided.data ->> 'retry_in_seconds')::float8 END::float8
		FROM tasker.tasks t
		LEFT JOIN tasker.events decided ON decided.task_id = t.task_id AND decided.name = 'step.retry_requested'
		LEFT JOIN tasker.events started ON started.task_id = t.task_id AND started.name = 'step.handle' AND started.attempt = 2
		WHERE t.task_id = $1`
	tooLate = 50 * time.Millisecond
)

func main() {
	n := flag.Int("n", 300, "tasks per series")
	pause := flag.Duration("pause", 20*time.Millisecond, "between the end of a task and the next")
	flag.Parse()
	stage.Main("latency", func(ctx context.Context) error { return measure(ctx, *n, *pause) })
}

func measure(ctx context.Context, n int, pause time.Duration) (err error) {
	s, err := stage.Open(ctx, "track_commit_timestamp = on")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	pool := s.Pool
	for name, steps := range templates {
		if err := s.Register(ctx, name, fmt.Sprintf("name: %s\nnamespace_name: bench\nstep_templates:\n  - %s\n", name, steps)); err != nil {
			return err
		}
	}
	if err := s.Worker(ctx); err != nil {
		return err
	}
	if err := s.Sidekiq(ctx, "./bench/latency/boot.rb", 5, "default"); err != nil {
		return err
	}
	for _, kind := range kinds {
		for range 20 { // until the plans are cached and Sidekiq is up
			if _, err := once(ctx, pool, kind.name, kind.of); err != nil {
				return err
			}
		}
	}
	// Alternately, so that a noisy minute falls on all.
	series := map[string][]time.Duration{}
	for range n {
		for _, kind := range kinds {
			time.Sleep(pause)
			d, err := once(ctx, pool, kind.name, kind.of)
			if err != nil {
				return err
			}
			series[kind.name] = append(series[kind.name], d)
		}
	}
	fmt.Printf("%-6s %6s %9s %9s %9s %9s\n", "step", "tasks", "min", "median", "p95", "max")
	for _, kind := range kinds {
		took := series[kind.name]
		slices.Sort(took)
		at := func(q float64) time.Duration {
			return took[min(int(q*float64(len(took))), len(took)-1)].Round(10 * time.Microsecond)
		}
		fmt.Printf("%-6s %6d %9s %9s %9s %9s\n", kind.name, len(took), at(0), at(0.5), at(0.95), at(1))
	}
	if late := series["retry"][n/2]; late > tooLate {
		return fmt.Errorf("half of the retries were more than %s late", late)
	}
	return nil
}

// once runs one task and returns what the query says of it.
func once(ctx context.Context, pool *pgxpool.Pool, name, query string) (time.Duration, error) {
	var task int64
	var inserted string
	if err := pool.QueryRow(ctx, `INSERT INTO tasker.tasks (namespace, name) VALUES ('bench', $1) RETURNING task_id, pg_current_xact_id()::text`,
		name).Scan(&task, &inserted); err != nil {
		return 0, err
	}
	for {
		var took *float64
		err := pool.QueryRow(ctx, query, task, inserted).Scan(&took)
		if err != nil {
			return 0, err
		}
		if took != nil {
			return time.Duration(*took * float64(time.Second)), nil
		}
		select {
		case <-time.After(5 * time.Millisecond): // rarely enough not to be a load of its own
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}
