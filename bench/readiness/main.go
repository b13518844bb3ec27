// Command readiness measures what it takes to find out which steps may start
// after a result: by SQL, as engines do it that ask the database each time, and
// from the loaded state, as the loop does it. The tables hold many tasks of 10,
// 100 and 1,000 steps, each step behind two others, half of them satisfied. Run it
// from the root of the repository, on a quiet machine:
//
//	go run ./bench/readiness
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/bench/stage"
	"github.com/taskerhq/tasker/dag"
	"github.com/taskerhq/tasker/store"
)

// What is asked of SQL. The view says of each step why it may not start; the
// query is the least that has to be asked.
const (
	view  = `SELECT step_id FROM tasker.step_readiness WHERE task_id = $1 AND reason IN ('ready', 'no_worker_alive', 'no_handler_alive')`
	query = `
		WITH open AS MATERIALIZED (
			SELECT t.template_id, s.step_id, s.position, s.attempts - s.losses - s.forgiven AS used,
			       s.state IN ('pending', 'waiting_for_retry') AND coalesce(s.retry_at, now()) <= now() AS due
			FROM tasker.tasks t JOIN tasker.steps s USING (task_id)
			WHERE t.task_id = $1 AND s.state NOT IN ('complete', 'skipped', 'resolved_manually')
		), edges AS MATERIALIZED (
			SELECT o.step_id, d
			FROM open o JOIN tasker.template_steps x USING (template_id, position) CROSS JOIN unnest(x.depends_on) d
		)
		SELECT o.step_id FROM open o JOIN tasker.template_steps x USING (template_id, position)
		WHERE o.due AND o.used < x.attempt_limit
		  AND o.step_id NOT IN (SELECT e.step_id FROM edges e JOIN open p ON p.position = e.d)`
)

func main() {
	asks := flag.Int("asks", 200, "questions per size and way")
	flag.Parse()
	stage.Main("readiness", func(ctx context.Context) error { return measure(ctx, *asks) })
}

func measure(ctx context.Context, asks int) (err error) {
	servers, err := stage.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, servers.Close()) }()
	conn, err := pgx.Connect(ctx, servers.DatabaseURL())
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	s := store.New(servers.Pool)
	worker, err := s.RegisterWorker(ctx, "readiness", "readiness", time.Hour, map[string]any{})
	if err != nil {
		return err
	}
	fmt.Printf("%6s  %12s %12s %14s %14s  %10s %10s\n", "steps", "view, µs", "query, µs", "load and", "from loaded", "SQL:", "SQL:")
	fmt.Printf("%6s  %12s %12s %14s %14s  %10s %10s\n", "", "", "", "compute, µs", "state, µs", "load", "loaded")
	tasks := map[int][]int64{}
	sizes := []int{10, 100, 1000}
	for _, n := range sizes { // all of them, before anything is asked
		if tasks[n], err = fill(ctx, servers, n, 5000/(n/10)); err != nil {
			return err
		}
	}
	if _, err := servers.Pool.Exec(ctx, `VACUUM ANALYZE tasker.tasks, tasker.steps, tasker.template_steps`); err != nil {
		return err
	}
	for _, n := range sizes {
		template, err := s.FindTemplate(ctx, "bench", name(n), "")
		if err != nil {
			return err
		}
		graph, err := dag.New(template.Steps)
		if err != nil {
			return err
		}
		claimer := s.NewClaimer(ctx, worker)
		ways := make([][]float64, 4) // µs
		for range asks {
			task := tasks[n][rand.N(len(tasks[n]))]
			var viable [3]int
			for way, sql := range []string{view, query} {
				begun := time.Now()
				rows, _ := conn.Query(ctx, sql, task)
				steps, err := pgx.CollectRows(rows, pgx.RowTo[int64])
				if err != nil {
					return err
				}
				ways[way], viable[way] = append(ways[way], micros(time.Since(begun))), len(steps)
			}
			if _, err := claimer.Claim(ctx, task); err != nil {
				return err
			}
			begun := time.Now()
			held, err := s.Reread(ctx, worker, task)
			if err != nil {
				return err
			}
			states := make([]tasker.StepState, len(held.Steps))
			for i, step := range held.Steps {
				states[i] = step.State
			}
			progress := dag.NewProgress(graph, states)
			viable[2] = len(progress.Viable())
			ways[2] = append(ways[2], micros(time.Since(begun)))
			if viable[0] != viable[1] || viable[1] != viable[2] || viable[0] == 0 {
				return fmt.Errorf("of task %d, steps that may start: %v", task, viable)
			}
			ways[3] = append(ways[3], micros(finish(progress)))
		}
		var medians [4]float64
		for i, took := range ways {
			medians[i] = stage.SpreadOf(took).Median
		}
		sql, loading, loaded := min(medians[0], medians[1]), medians[2], medians[3]
		fmt.Printf("%6d  %12.0f %12.0f %14.0f %14.3f  %10.1f %10.0f\n", n, medians[0], medians[1], loading, loaded, sql/loading, sql/loaded)
	}
	return nil
}

func micros(d time.Duration) float64 { return d.Seconds() * 1e6 }

// finish completes one step after the other, asking each time what may start
// now, and returns the time per result.
func finish(p *dag.Progress) time.Duration {
	n := 0
	begun := time.Now()
	for ready := p.FirstViable(1); len(ready) > 0; ready = p.FirstViable(1) {
		p.Set(ready[0], tasker.StepInProgress)
		p.Set(ready[0], tasker.StepComplete)
		n++
	}
	return time.Since(begun) / time.Duration(n)
}

func name(n int) string { return fmt.Sprintf("layers_%d", n) }

// fill registers a template of n steps in layers and inserts tasks of it, whose
// first half is satisfied.
func fill(ctx context.Context, servers *stage.Stage, n, tasks int) ([]int64, error) {
	width := 1
	for width*width < n {
		width++
	}
	var yaml strings.Builder
	fmt.Fprintf(&yaml, "name: %s\nnamespace_name: bench\nstep_templates:\n", name(n))
	for i := range n {
		fmt.Fprintf(&yaml, "  - {name: s%d, handler: tasker.echo, bypassable: true", i)
		if above := i/width*width - width; above >= 0 {
			fmt.Fprintf(&yaml, ", depends_on_steps: [s%d, s%d]", above+i%width, above+(i+1)%width)
		}
		yaml.WriteString("}\n")
	}
	if err := servers.Register(ctx, name(n), yaml.String()); err != nil {
		return nil, err
	}
	rows, err := servers.Pool.Query(ctx, `INSERT INTO tasker.tasks (namespace, name, bypass_steps)
		SELECT 'bench', $1, ARRAY(SELECT 's' || i FROM generate_series(0, $2 / 2 - 1) i) FROM generate_series(1, $3) RETURNING task_id`, name(n), n, tasks)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[int64])
}
