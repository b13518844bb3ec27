package store_test

import (
	"context"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/testenv"
)

// periodic are the statements that a worker sends from time to time, besides those of a
// step's way. Each is called with what it looks at as fill leaves it.
var periodic = []struct {
	name string
	call func(ctx context.Context, s *store.Store, worker int64) error
}{
	{"take unstarted", func(ctx context.Context, s *store.Store, _ int64) error {
		taken, err := s.TakeUnstarted(ctx, time.Minute, 1000)
		if err == nil && len(taken) != 1000 {
			err = fmt.Errorf("%d were taken", len(taken))
		}
		return err
	}},
	{"still unstarted", func(ctx context.Context, s *store.Store, _ int64) error {
		taken, err := s.TakeUnstarted(ctx, time.Minute, 1000)
		if err == nil {
			_, err = s.StillUnstarted(ctx, taken)
		}
		return err
	}},
	{"read clocks", func(ctx context.Context, s *store.Store, _ int64) error {
		var tasks, attempts int
		for { // as a worker does, until all is done
			t, a, err := s.ReadClocks(ctx, 10*time.Second, time.Hour)
			tasks, attempts = tasks+t, attempts+a
			if err != nil || t+a == 0 {
				if err == nil && (tasks != 100 || attempts == 0) {
					err = fmt.Errorf("%d tasks expired, %d attempts reaped", tasks, attempts)
				}
				return err
			}
		}
	}},
	{"age jobs", func(ctx context.Context, s *store.Store, _ int64) error { return s.AgeJobs(ctx, time.Hour) }},
	{"rescue unheard", func(ctx context.Context, s *store.Store, _ int64) error {
		_, err := s.RescueUnheard(ctx, "c", []int64{1, 2, 3})
		return err
	}},
	{"sweep", func(ctx context.Context, s *store.Store, _ int64) error {
		_, err := s.Sweep(ctx)
		return err
	}},
	{"find stale", func(ctx context.Context, s *store.Store, _ int64) error {
		_, err := s.FindStale(ctx, store.Staleness{Pending: time.Hour, InProgress: time.Hour, Waiting: time.Hour, Running: time.Hour})
		return err
	}},
	{"beat", func(ctx context.Context, s *store.Store, worker int64) error {
		_, err := s.Beat(ctx, worker)
		return err
	}},
	{"reap worker", func(ctx context.Context, s *store.Store, _ int64) error {
		_, err := s.ReapWorker(ctx)
		return err
	}},
	{"wake handled", func(ctx context.Context, s *store.Store, worker int64) error {
		_, err := s.WakeHandled(ctx, worker)
		return err
	}},
	{"handled elsewhere", func(ctx context.Context, s *store.Store, worker int64) error {
		_, err := s.HandledElsewhere(ctx, worker, []string{"h"})
		return err
	}},
	{"processes", func(ctx context.Context, s *store.Store, _ int64) error {
		_, err := s.Processes(ctx, 10*time.Second)
		return err
	}},
	{"awaited", func(ctx context.Context, s *store.Store, worker int64) error {
		_, err := s.Awaited(ctx, worker)
		return err
	}},
	{"epochs", func(ctx context.Context, s *store.Store, worker int64) error {
		_, err := s.Epochs(ctx, worker)
		return err
	}},
	{"admit waiters", func(ctx context.Context, s *store.Store, _ int64) error {
		_, err := s.AdmitWaiters(ctx)
		return err
	}},
	{"admitted tasks", func(ctx context.Context, s *store.Store, worker int64) error {
		_, err := s.AdmittedTasks(ctx, worker)
		return err
	}},
	{"known gates", func(ctx context.Context, s *store.Store, _ int64) error {
		_, err := s.KnownGates(ctx)
		return err
	}},
	{"roll up", func(ctx context.Context, s *store.Store, _ int64) error {
		_, err := s.RollUp(ctx, 5000)
		return err
	}},
	{"backlog", func(ctx context.Context, s *store.Store, _ int64) error {
		_, err := s.Backlog(ctx)
		return err
	}},
	{"counts", func(ctx context.Context, s *store.Store, _ int64) error {
		_, _, _, err := s.Counts(ctx)
		return err
	}},
	{"gate uses", func(ctx context.Context, s *store.Store, _ int64) error {
		_, err := s.GateUses(ctx)
		return err
	}},
	{"queue uses", func(ctx context.Context, s *store.Store, _ int64) error {
		_, err := s.QueueUses(ctx, 10*time.Second)
		return err
	}},
	{"waiting now", func(ctx context.Context, s *store.Store, _ int64) error {
		_, err := s.WaitingNow(ctx, 20)
		return err
	}},
	{"loads", func(ctx context.Context, s *store.Store, _ int64) error {
		_, err := s.Loads(ctx)
		return err
	}},
	{"totals", func(ctx context.Context, s *store.Store, _ int64) error {
		_, err := s.Totals(ctx)
		return err
	}},
	{"open dead letters", func(ctx context.Context, s *store.Store, _ int64) error {
		_, err := s.OpenDeadLetters(ctx)
		return err
	}},
	{"event lags", func(ctx context.Context, s *store.Store, _ int64) error {
		_, err := s.EventLags(ctx)
		return err
	}},
	{"events", func(ctx context.Context, s *store.Store, _ int64) error {
		_, err := s.NextEvents(ctx, "sub", "me", 500, "", "")
		return err
	}},
	{"prune", func(ctx context.Context, s *store.Store, _ int64) error {
		return s.Prune(ctx, store.Retention{Tasks: time.Hour, Events: 24 * time.Hour}, store.PruneOptions{}, func(store.Pruned) {})
	}},
	{"prune statistics", func(ctx context.Context, s *store.Store, _ int64) error { return s.PruneStats(ctx, time.Hour) }},
	{"keep event days", func(ctx context.Context, s *store.Store, _ int64) error { return s.KeepEventDays(ctx) }},
	{"stop worker", func(ctx context.Context, s *store.Store, worker int64) error { return s.StopWorker(ctx, worker) }},
}

// busyTables are those that are empty at night and full in the morning.
const busyTables = "tasker.tasks, tasker.steps, tasker.events, tasker.dispatches, tasker.river_job, tasker.gate_waiters, tasker.dead_letters, tasker.processes, tasker.workers, tasker.stats"

// emptied leaves tables that have pages and no rows, and statistics that say so, as
// autovacuum makes them in an idle minute. Nothing makes other statistics from then on.
var emptied = `
	DO $$ DECLARE t regclass; BEGIN
		FOR t IN SELECT c.oid FROM pg_class c WHERE c.relkind = 'r' AND c.relnamespace = 'tasker'::regnamespace LOOP
			EXECUTE format('ALTER TABLE %s SET (autovacuum_enabled = off)', t);
		END LOOP; END $$;
	INSERT INTO tasker.tasks (namespace, name) SELECT 'n', 'fan' FROM generate_series(1, 200);
	INSERT INTO tasker.dispatches (step_id, task_id, attempt, queue) SELECT step_id, task_id, 1, 'default' FROM tasker.steps;
	DELETE FROM tasker.dispatches; DELETE FROM tasker.steps; DELETE FROM tasker.tasks; DELETE FROM tasker.events; DELETE FROM tasker.river_job;
	ANALYZE ` + busyTables

// flooded: 500 tasks of 12 Ruby steps side by side, all out, most of them not started;
// 500 that wait, 500 that have not been touched, 100 whose deadline has passed, and 500
// that have ended.
const flooded = `
	INSERT INTO tasker.processes (identity, details) VALUES ('alive', '{"queues": ["default"]}'), ('dead', '{"queues": ["default"]}');
	UPDATE tasker.processes SET last_seen_at = now() - interval '1 hour' WHERE identity = 'dead';
	INSERT INTO tasker.tasks (namespace, name, deadline) SELECT 'n', 'fan', CASE WHEN i > 2000 THEN now() + interval '1 hour' END FROM generate_series(1, 2100) i;
	CREATE TEMP TABLE ids AS SELECT task_id, row_number() OVER (ORDER BY task_id) AS i FROM tasker.tasks;
	UPDATE tasker.tasks t SET state = 'in_progress', owner = $1, epoch = 1, started_at = now() FROM ids WHERE ids.task_id = t.task_id AND (i <= 1000 OR i > 1500);
	UPDATE tasker.steps s SET state = 'enqueued', attempts = 1 FROM ids WHERE ids.task_id = s.task_id AND i <= 500;
	INSERT INTO tasker.dispatches (step_id, task_id, attempt, queue, awaited_by, looked_at)
		SELECT step_id, task_id, 1, 'default', $1, now() - interval '1 hour' FROM tasker.steps WHERE state = 'enqueued';
	UPDATE tasker.dispatches d SET started_at = now(), process_id = (SELECT process_id FROM tasker.processes WHERE identity = CASE d.step_id % 20 WHEN 0 THEN 'dead' ELSE 'alive' END)
		WHERE step_id % 10 = 0;
	UPDATE tasker.steps s SET state = 'in_progress', started_at = now() WHERE state = 'enqueued' AND step_id % 10 = 0;
	UPDATE tasker.steps s SET state = 'in_progress', attempts = 1 FROM ids WHERE ids.task_id = s.task_id AND i BETWEEN 501 AND 1000 AND position = 0;
	UPDATE tasker.steps s SET state = 'waiting_for_retry', retry_at = now() + interval '1 hour' FROM ids WHERE ids.task_id = s.task_id AND i BETWEEN 501 AND 1000 AND position = 0;
	UPDATE tasker.tasks t SET owner = NULL FROM ids WHERE ids.task_id = t.task_id AND i BETWEEN 501 AND 1000;
	UPDATE tasker.steps s SET state = 'in_progress', attempts = 1, started_at = now() FROM ids WHERE ids.task_id = s.task_id AND i BETWEEN 1501 AND 2000;
	UPDATE tasker.steps s SET state = 'complete', result = '1', finished_at = now() FROM ids WHERE ids.task_id = s.task_id AND i BETWEEN 1501 AND 2000;
	UPDATE tasker.tasks t SET state = 'complete', owner = NULL, finished_at = now() - interval '2 hours' FROM ids WHERE ids.task_id = t.task_id AND i BETWEEN 1501 AND 2000;
	DELETE FROM tasker.river_job j USING ids WHERE (j.args ->> 'task_id')::bigint = ids.task_id AND (i <= 500 OR i > 1500);
	UPDATE tasker.tasks t SET deadline = now() - interval '1 second' FROM ids WHERE ids.task_id = t.task_id AND i > 2000;
	DROP TABLE ids`

// states are those of the same rows: what Postgres knows of them, and how much else
// lies between them.
var states = []struct{ name, prepare string }{
	{"just analyzed, full", `ANALYZE ` + busyTables},
	{"analyzed when they were empty", ``},
	{"never analyzed", `UPDATE pg_class SET reltuples = -1, relpages = 0, relallvisible = 0 WHERE relnamespace = 'tasker'::regnamespace AND relkind = 'r';
		DELETE FROM pg_statistic USING pg_class c WHERE starelid = c.oid AND c.relnamespace = 'tasker'::regnamespace`},
	{"bloated, analyzed when they were empty", bloat},
	{"bloated, just analyzed", bloat + `; ANALYZE ` + busyTables},
	{"vacuumed", `VACUUM ANALYZE ` + busyTables},
}

// bloat leaves two dead versions of each row that is updated on the way of a step, as
// many updates do while an old snapshot is held.
const bloat = `UPDATE tasker.dispatches SET looked_at = looked_at; UPDATE tasker.steps SET progress = NULL; UPDATE tasker.tasks SET reason = NULL; UPDATE tasker.river_job SET priority = priority;
	UPDATE tasker.dispatches SET looked_at = looked_at; UPDATE tasker.steps SET progress = NULL; UPDATE tasker.tasks SET reason = NULL; UPDATE tasker.river_job SET priority = priority`

var (
	buffers = regexp.MustCompile(`Buffers: shared(?: hit=(\d+))?(?: read=(\d+))?`)
	visited = regexp.MustCompile(`\(actual rows=([\d.]+) loops=(\d+)\)`)
)

// rowsPerPage is how many rows looked at cost as much as a page.
const rowsPerPage = 50

// costOf is what a statement took, in pages of tables and indexes, or rows that were
// looked at in memory.
func costOf(plan string) float64 {
	cost := 0.0
	if m := buffers.FindStringSubmatch(plan); m != nil { // the first is of the whole
		hit, _ := strconv.ParseFloat("0"+m[1], 64)
		read, _ := strconv.ParseFloat("0"+m[2], 64)
		cost = hit + read
	}
	loops := 1.0
	for line := range strings.SplitSeq(plan, "\n") {
		if m := visited.FindStringSubmatch(line); m != nil {
			rows, _ := strconv.ParseFloat(m[1], 64)
			loops, _ = strconv.ParseFloat(m[2], 64)
			cost += rows * loops / rowsPerPage
		}
		if m := removed.FindStringSubmatch(line); m != nil {
			rows, _ := strconv.ParseFloat(m[1], 64)
			cost += rows * loops / rowsPerPage
		}
	}
	return cost
}

// Whatever Postgres believes of its tables, no statement takes much longer than it
// takes with the right statistics: a plan for empty tables, used when they are full,
// once stopped everything for minutes.
func TestStatementsAreCheapInEveryStateOfTheTables(t *testing.T) {
	t.Parallel()
	ctx, base := t.Context(), testenv.Database(t)
	var worker int64
	func() {
		fill, err := pgxpool.New(ctx, base)
		if err != nil {
			t.Fatal(err)
		}
		defer fill.Close()
		exec := func(sql string, args ...any) {
			t.Helper()
			if _, err := fill.Exec(ctx, sql, append([]any{pgx.QueryExecModeSimpleProtocol}, args...)...); err != nil {
				t.Fatal(err)
			}
		}
		s := store.New(fill)
		if worker, err = s.RegisterWorker(ctx, "w", "c", time.Hour, map[string]any{"handlers": []string{"h"}}); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"fan", "life"} {
			exec(`SELECT tasker.register_template('n', $1, '1.0.0', '', '{"max_parallel_steps": 12}', 'c', 12,
				(SELECT jsonb_agg(jsonb_build_object('position', p, 'name', 's' || p, 'attempt_limit', 1) || CASE
						WHEN $1 = 'fan' THEN '{"handler_class": "H"}'::jsonb WHEN p = 0 THEN '{"handler": "h"}'::jsonb ELSE '{"handler_class": "H", "depends_on": [0]}' END)
					FROM generate_series(1, $2) i, LATERAL (SELECT i - 1) AS j(p)))`, name, perTask)
		}
		if err := s.Subscribe(ctx, "sub", []string{"*"}, true); err != nil {
			t.Fatal(err)
		}
		exec(emptied)
		exec(flooded, worker)
	}()

	costs := map[string]map[string]float64{} // by statement and state
	worst := map[string]map[string]string{}  // its plans
	for _, state := range states {
		func() {
			url := testenv.CopyOf(t, base)
			fill := testenv.Pool(t, url)
			for statement := range strings.SplitSeq(state.prepare, ";") {
				if strings.TrimSpace(statement) == "" {
					continue
				}
				if _, err := fill.Exec(ctx, statement); err != nil {
					t.Fatalf("%s: %v", state.name, err)
				}
			}
			p := newPlanner(t, url)
			s := store.New(p.pool)
			s.Groups = store.Groups{Connections: 1}
			if err := p.explain(ctx); err != nil {
				t.Fatal(err)
			}
			note := func(name string) {
				p.mu.Lock()
				defer p.mu.Unlock()
				if costs[name] == nil {
					costs[name], worst[name] = map[string]float64{}, map[string]string{}
				}
				slices.SortFunc(p.plans, func(a, b string) int { return int(costOf(b) - costOf(a)) })
				costs[name][state.name] = 0
				for _, plan := range p.plans {
					costs[name][state.name] += costOf(plan)
				}
				worst[name][state.name] = strings.Join(p.plans[:min(2, len(p.plans))], "\n")
				p.plans = nil
			}
			life(ctx, t, s, p.pool, worker, 100)
			note("the way of a step")
			life(ctx, t, s, p.pool, worker, 100, 2)
			note("the way of a step, claimed with its first attempts")
			if _, err := p.pool.Exec(ctx, `SET statement_timeout = '10s'`); err != nil {
				t.Fatal(err)
			}
			for _, c := range periodic {
				err := c.call(ctx, s, worker)
				note(c.name)
				if err != nil {
					t.Errorf("%s: %s: %v", state.name, c.name, err)
					costs[c.name][state.name] = math.Inf(1)
				}
			}
		}()
	}
	for _, name := range slices.Sorted(maps.Keys(costs)) {
		best := max(slices.Min(slices.Collect(maps.Values(costs[name]))), 2000) // about a millisecond: what is that cheap may vary
		line := fmt.Sprintf("%-52s", name)
		for _, state := range states {
			line += fmt.Sprintf(" %9.0f", costs[name][state.name])
		}
		t.Log(line)
		for _, state := range states {
			if cost := costs[name][state.name]; cost > 5*best {
				t.Errorf("%s: %s costs %.0f, its best is %.0f\n%.6000s", state.name, name, cost, best, worst[name][state.name])
			}
		}
	}
}
