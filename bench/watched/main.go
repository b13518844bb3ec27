// Command watched measures what it costs to be looked at, and how long looking takes,
// with a million finished tasks in the tables: W1 (tasks of 10 steps in a row) by a worker
// that counts nothing, one that keeps the counts of analytics up, one that is scraped for
// metrics every second and exports the traces of one task in a hundred besides, and one
// that is asked for analytics every second, and one that streams all task events, too.
// They take turns. fsync and synchronous_commit are on. Run it from the root of the repository, on
// a quiet machine (15 minutes):
//
//	go run ./bench/watched
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/analytics"
	"github.com/taskerhq/tasker/bench/stage"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/telemetry"
	"github.com/taskerhq/tasker/worker"
)

const (
	steps  = 10
	listen = "127.0.0.1:17391"
)

var series = []struct {
	name                            string
	counts, metrics, asked, streams bool
}{
	{"counts nothing", false, false, false, false},
	{"keeps the counts", true, false, false, false},
	{"metrics and traces", true, true, false, false},
	{"asked each second", true, true, true, false},
	{"and streaming", true, true, true, true},
}

func main() {
	rounds := flag.Int("rounds", 5, "runs of each series")
	tasks := flag.Int("tasks", 8000, "tasks per run")
	finished := flag.Int("finished", 1_000_000, "finished tasks in the tables")
	flag.Parse()
	stage.Main("watched", func(ctx context.Context) error { return measure(ctx, *rounds, *tasks, *finished) })
}

func measure(ctx context.Context, rounds, tasks, finished int) (err error) {
	servers, err := stage.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, servers.Close()) }()
	s := store.New(servers.Pool)
	var yaml strings.Builder
	fmt.Fprint(&yaml, "name: chain\nnamespace_name: bench\nstep_templates:\n  - {name: s0, handler: tasker.echo}\n")
	for i := 1; i < steps; i++ {
		fmt.Fprintf(&yaml, "  - {name: s%d, handler: tasker.echo, depends_on_step: s%d}\n", i, i-1)
	}
	if err := servers.Register(ctx, "chain", yaml.String()); err != nil {
		return err
	}
	if err := fill(ctx, servers, finished); err != nil {
		return err
	}
	if err := ask(ctx, s, "idle"); err != nil {
		return err
	}

	var spans atomic.Int64
	sink := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		spans.Add(1)
	}))
	defer sink.Close()
	rates, costs := make([][]float64, len(series)), make([][]float64, len(series))
	for round := range rounds + 1 {
		for i, x := range series {
			c := worker.Config{DatabaseURL: servers.DatabaseURL(), Logger: slog.New(slog.DiscardHandler)}
			if !x.counts {
				c.RollUpEvery = 24 * time.Hour
			}
			if x.metrics {
				c.Listen = listen
				c.Traces = telemetry.TraceConfig{Endpoint: sink.URL, OneIn: 100}
			}
			rate, cost, err := run(ctx, servers, c, x.asked, x.streams, tasks, false)
			if err != nil {
				return err
			}
			if round > 0 { // the first one warms up
				rates[i], costs[i] = append(rates[i], rate), append(costs[i], cost)
			}
		}
		fmt.Fprintf(os.Stderr, "round %d of %d\n", round, rounds)
	}
	c := worker.Config{DatabaseURL: servers.DatabaseURL(), Logger: slog.New(slog.DiscardHandler)}
	if _, _, err := run(ctx, servers, c, false, false, 2*tasks, true); err != nil {
		return err
	}
	fmt.Printf("\n%-20s %10s %10s %10s %9s   %s\n", "steps/s", "min", "median", "max", "ratio", "CPU per step, µs, of all: median (least–most), ratio")
	without, cheapest := stage.SpreadOf(rates[0]), stage.SpreadOf(costs[0])
	for i, x := range series {
		rate := stage.SpreadOf(rates[i])
		cost := stage.SpreadOf(costs[i])
		fmt.Printf("%-20s %10.0f %10.0f %10.0f %9.2f   %.1f (%.1f–%.1f), %.2f\n", x.name, rate.Least, rate.Median, rate.Most, rate.Median/without.Median,
			cost.Median, cost.Least, cost.Most, cost.Median/cheapest.Median)
	}
	fmt.Printf("batches of spans received: %d\n", spans.Load())
	return nil
}

// fill puts finished tasks of the last day into the tables, as a worker would have left
// them, and counts them.
func fill(ctx context.Context, servers *stage.Stage, finished int) error {
	if finished == 0 {
		return nil
	}
	fmt.Fprintf(os.Stderr, "filling the tables with %d finished tasks: some minutes\n", finished)
	conn, err := pgx.Connect(ctx, servers.DatabaseURL())
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	for _, sql := range []string{
		`SET session_replication_role = replica`, // no triggers: nothing is to be started
		`INSERT INTO tasker.tasks (template_id, namespace, name, version, state, created_at, started_at, finished_at)
			SELECT template_id, namespace, name, version, 'complete', at, at + interval '20 ms', at + interval '20 ms' + random() * interval '10 s'
			FROM tasker.task_templates, generate_series(1, ` + strconv.Itoa(finished) + `) i, LATERAL (SELECT now() - interval '23 hours' + i * interval '23 hours' / ` + strconv.Itoa(finished) + ` AS at) a`,
		`INSERT INTO tasker.steps (task_id, position, name, state, attempts, started_at, finished_at)
			SELECT t.task_id, s.position, s.name, 'complete', 1, t.started_at + s.position * (t.finished_at - t.started_at) / 10, t.started_at + (s.position + 1) * (t.finished_at - t.started_at) / 10
			FROM tasker.tasks t JOIN tasker.template_steps s USING (template_id) WHERE s.position < 4 ORDER BY t.task_id, s.position`,
		`INSERT INTO tasker.events (task_id, step_id, created_at, attempt, name)
			SELECT e.* FROM (
				SELECT task_id, NULL::bigint AS step_id, created_at AS at, NULL::int AS attempt, 'task.initialize_requested' AS name FROM tasker.tasks
				UNION ALL SELECT task_id, step_id, started_at, 1, 'step.handle' FROM tasker.steps
				UNION ALL SELECT task_id, step_id, finished_at, 1, 'step.completed' FROM tasker.steps
				UNION ALL SELECT task_id, NULL, finished_at, NULL, 'task.completed' FROM tasker.tasks) e ORDER BY e.at`,
		`RESET session_replication_role`,
		`VACUUM ANALYZE`,
		`CHECKPOINT`,
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("fill the tables: %w", err)
		}
	}
	began, events := time.Now(), 0
	for {
		var n int
		if err := conn.QueryRow(ctx, `SELECT tasker.roll_up(5000, 0)`).Scan(&n); err != nil {
			return err
		}
		events += n
		if n < 5000 {
			break
		}
	}
	took := time.Since(began)
	if _, err := conn.Exec(ctx, `VACUUM ANALYZE tasker.stats, tasker.stats_slowest`); err != nil { // as autovacuum would, within a minute
		return err
	}
	fmt.Printf("counting %d events took %s: %.1f µs each\n", events, took.Round(time.Millisecond), float64(took.Microseconds())/float64(events))
	return nil
}

// ask asks each question of analytics ten times, and prints how long the answers took.
func ask(ctx context.Context, s *store.Store, when string) error {
	scope := store.Scope{Period: 24 * time.Hour}
	fmt.Printf("\n%-36s %8s %8s\n", "answers, "+when+", ms", "median", "most")
	for _, q := range []struct {
		name string
		ask  func() error
	}{
		{"performance", func() error { _, err := analytics.PerformanceOf(ctx, s, scope); return err }},
		{"bottlenecks", func() error { _, err := analytics.BottlenecksOf(ctx, s, scope); return err }},
		{"a task", func() error { _, err := analytics.TaskOf(ctx, s, 1); return err }},
		{"figures of a week", func() error {
			_, err := s.Figures(ctx, store.Scope{Period: 7 * 24 * time.Hour})
			return err
		}},
		{"totals, for metrics", func() error { _, err := s.Totals(ctx); return err }},
		{"what is waited for", func() error { _, err := s.WaitingNow(ctx, 2000); return err }},
		{"counts, for /health/status", func() error { _, _, _, err := s.Counts(ctx); return err }},
	} {
		var took []float64
		for range 10 {
			began := time.Now()
			if err := q.ask(); err != nil {
				return err
			}
			took = append(took, float64(time.Since(began).Microseconds())/1000)
		}
		spread := stage.SpreadOf(took)
		fmt.Printf("%-36s %8.1f %8.1f\n", q.name, spread.Median, spread.Most)
	}
	return nil
}

// run has a worker do the tasks, and returns its rate, and what a step cost of all
// processors: Postgres', and this process's, which is the worker and those who look on.
func run(ctx context.Context, servers *stage.Stage, c worker.Config, asked, streams bool, tasks int, askWhile bool) (rate, cost float64, err error) {
	working, end := context.WithCancel(ctx)
	defer end()
	started, ended := make(chan struct{}), make(chan error, 1)
	c.Started = func(int64) { close(started) }
	go func() { ended <- worker.Run(working, c) }()
	select {
	case <-started:
	case err := <-ended:
		return 0, 0, err
	}
	var watchers sync.WaitGroup
	if c.Listen != "" {
		watchers.Go(func() { visit(working, time.Second, "/metrics") })
	}
	if asked {
		watchers.Go(func() {
			visit(working, time.Second, "/analytics/performance", "/analytics/bottlenecks", "/health/status")
		})
	}
	if streams {
		watchers.Go(func() { visit(working, 0, "/events?pattern=task.*") })
	}
	if _, err := drain(ctx, servers, tasks/10); err != nil { // warms up
		return 0, 0, err
	}
	if askWhile {
		asking := make(chan error, 1)
		go func() { asking <- ask(ctx, store.New(servers.Pool), "under load") }()
		defer func() { err = errors.Join(err, <-asking) }()
	}
	before := spent(servers)
	took, err := drain(ctx, servers, tasks)
	used := spent(servers) - before
	end()
	watchers.Wait()
	n := float64(tasks * steps)
	return n / took.Seconds(), float64(used.Microseconds()) / n, errors.Join(err, <-ended)
}

// spent is the processor time of this process and of Postgres.
func spent(servers *stage.Stage) time.Duration {
	var own syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &own) // it fails for nonsense only
	return time.Duration(own.Utime.Nano()+own.Stime.Nano()) + servers.CPU()["postgres"]
}

// visit asks for the paths, again after each pause, until ctx ends.
func visit(ctx context.Context, pause time.Duration, paths ...string) {
	for ctx.Err() == nil {
		for _, path := range paths {
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+listen+path, nil)
			if err != nil {
				return
			}
			response, err := http.DefaultClient.Do(request)
			if err != nil {
				continue
			}
			_, _ = io.Copy(io.Discard, response.Body)
			response.Body.Close()
			if response.StatusCode != http.StatusOK {
				fmt.Fprintf(os.Stderr, "%s: %s\n", path, response.Status)
			}
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// drain enqueues the tasks, 50 a statement, and waits for the last of them.
func drain(ctx context.Context, servers *stage.Stage, tasks int) (time.Duration, error) {
	var floor int64
	if err := servers.Pool.QueryRow(ctx, `SELECT coalesce(max(task_id), 0) FROM tasker.tasks`).Scan(&floor); err != nil {
		return 0, err
	}
	begun := time.Now()
	for n := 0; n < tasks; n += 50 {
		if _, err := servers.Pool.Exec(ctx, `INSERT INTO tasker.tasks (namespace, name) SELECT 'bench', 'chain' FROM generate_series(1, 50)`); err != nil {
			return 0, fmt.Errorf("enqueue: %w", err)
		}
	}
	for {
		var open bool
		err := servers.Pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM tasker.tasks WHERE task_id > $1 AND state IN ('pending', 'in_progress'))`, floor).Scan(&open)
		if err != nil || !open {
			return time.Since(begun), err
		}
		time.Sleep(2 * time.Millisecond) // asking more often would be load of its own
	}
}
