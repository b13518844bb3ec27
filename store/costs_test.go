package store_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/devstack"
	"github.com/taskerhq/tasker/migrations"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/testenv"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const costsFile = "testdata/costs.golden"

// cost is what something costs that is done for a number of steps. None of it
// depends on the machine or on its load.
type cost struct {
	what        string
	steps       int
	statements  int     // sent, each a transaction
	inside      int     // that functions and triggers carry out for them
	wal         float64 // bytes per step
	allocations float64 // per step, to lay it out for Postgres
}

// meter measures on a server of its own: WAL is counted for all of a server.
type meter struct {
	*planner
	t     *testing.T
	admin *pgxpool.Pool
	costs []cost
}

func newMeter(t *testing.T) *meter {
	t.Helper()
	ctx := t.Context()
	server, err := devstack.StartPostgres(ctx, devstack.PostgresOptions{Dir: testenv.Dir(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	admin := testenv.Pool(t, server.URL("postgres"))
	// Nothing else is to write.
	for _, sql := range []string{`ALTER SYSTEM SET autovacuum = off`, `ALTER SYSTEM SET checkpoint_timeout = '1h'`, `SELECT pg_reload_conf()`} {
		if _, err := admin.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	if err := migrations.Up(ctx, admin); err != nil {
		t.Fatal(err)
	}
	return &meter{planner: newPlanner(t, server.URL("postgres")), t: t, admin: admin}
}

func (m *meter) lsn() (at int64) {
	if err := m.admin.QueryRow(m.t.Context(), `SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint`).Scan(&at); err != nil {
		m.t.Fatal(err)
	}
	return at
}

// of measures what do costs, for so many steps. Units are those that it writes.
func (m *meter) of(what string, steps int, units []*store.Unit, do func() error) {
	m.t.Helper()
	m.mu.Lock()
	m.plans, m.sent = nil, 0
	m.mu.Unlock()
	before := m.lsn()
	if err := do(); err != nil {
		m.t.Fatalf("%s: %v", what, err)
	}
	c := cost{what: what, steps: steps, wal: float64(m.lsn()-before) / float64(steps)}
	m.mu.Lock()
	c.statements, c.inside = m.sent, len(m.plans)-m.sent
	m.mu.Unlock()
	if units != nil {
		c.allocations = store.EncodeAllocations(units) / float64(steps)
	}
	m.costs = append(m.costs, c)
}

// journey takes n tasks of ten Go steps through their lives, all of them in each call.
func (m *meter) journey(n int, s *store.Store, worker int64, opening []int64) {
	ctx := m.t.Context()
	const chain = 10
	claimer, writer := s.NewClaimer(ctx, worker), s.NewWriter(ctx, worker)
	var tasks []int64
	m.of("enqueue", n*chain, nil, func() error {
		rows, err := m.pool.Query(ctx, `INSERT INTO tasker.tasks (namespace, name) SELECT 'n', 'chain' FROM generate_series(1, $1) RETURNING task_id`, n)
		if err != nil {
			return err
		}
		tasks, err = pgx.CollectRows(rows, pgx.RowTo[int64])
		return err
	})
	var claimed map[int64]*store.Claimed
	m.of("claim, with the first attempts", n*chain, nil, func() (err error) {
		claimed, err = claimer.ClaimTogether(tasks, opening)
		return err
	})
	if len(claimed) != n || !claimed[tasks[0]].Begun {
		m.t.Fatalf("%d of %d tasks are claimed, begun %t", len(claimed), n, claimed[tasks[0]].Begun)
	}
	result := json.RawMessage(fmt.Sprintf(`{"text": %q}`, strings.Repeat("x", 88))) // 100 bytes
	units := func(i int) []*store.Unit {
		all := make([]*store.Unit, n)
		for k, task := range tasks {
			steps := claimed[task].Steps
			u := &store.Unit{Task: task, Epoch: claimed[task].Epoch, Steps: []store.StepWrite{
				{Step: steps[i].StepID, Was: tasker.StepInProgress, WasAttempt: 1, State: tasker.StepComplete, Attempt: 1, Result: result},
			}}
			if i+1 < chain {
				u.Steps = append(u.Steps, store.StepWrite{Step: steps[i+1].StepID, Was: tasker.StepPending, State: tasker.StepInProgress, Attempt: 1})
			} else {
				u.State, u.Release = tasker.TaskComplete, true
			}
			all[k] = u
		}
		return all
	}
	for i := range chain {
		all := units(i)
		what := "a result, and the next claim"
		if i+1 == chain {
			what = "the last result, and the task's end"
		}
		if i == 0 || i == 1 || i+1 == chain {
			m.of(what, n, all, func() error { return writer.WriteTogether(all) })
		} else if err := writer.WriteTogether(all); err != nil {
			m.t.Fatal(err)
		}
		if i == 0 {
			m.costs = m.costs[:len(m.costs)-1] // makes room on its pages; the next one is like all that follow
		}
	}
}

// ruby runs n attempts by a process, all in each call.
func (m *meter) ruby(n int, s *store.Store, worker int64) {
	ctx := m.t.Context()
	claimer, writer := s.NewClaimer(ctx, worker), s.NewWriter(ctx, worker)
	rows, _ := m.pool.Query(ctx, `INSERT INTO tasker.tasks (namespace, name) SELECT 'n', 'ruby' FROM generate_series(1, $1) RETURNING task_id`, n)
	tasks, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		m.t.Fatal(err)
	}
	claimed, err := claimer.ClaimTogether(tasks, []int64{})
	if err != nil {
		m.t.Fatal(err)
	}
	var units []*store.Unit
	var steps []int64
	for _, task := range tasks {
		id := claimed[task].Steps[0].StepID
		steps = append(steps, id)
		units = append(units, &store.Unit{Task: task, Epoch: 1, Steps: []store.StepWrite{{Step: id, Was: tasker.StepPending, State: tasker.StepEnqueued, Attempt: 1, Queue: "default"}}})
	}
	m.of("a claim for Sidekiq", n, units, func() error { return writer.WriteTogether(units) })
	m.of("a start", n, nil, func() error {
		_, err := m.pool.Exec(ctx, `SELECT * FROM tasker.start_attempts($1, (SELECT array_agg(1) FROM unnest($1::bigint[])))`, steps)
		return err
	})
	m.of("a report", n, nil, func() error {
		_, err := m.pool.Exec(ctx, `SELECT * FROM tasker.report_results((SELECT jsonb_agg(jsonb_build_object('step_id', id, 'attempt', 1, 'outcome', 'success',
			'result', repeat('x', 100))) FROM unnest($1::bigint[]) id), false)`, steps)
		return err
	})
}

// What a step costs grows by nobody's oversight: statements, what they do inside,
// WAL, allocations. Who means it, says so with -update.
func TestWhatAStepCosts(t *testing.T) { // not parallel: allocations are counted for all of a process
	ctx := t.Context()
	m := newMeter(t)
	if _, err := m.admin.Exec(ctx, `
		SELECT tasker.register_template('n', 'chain', '1.0.0', '', '{"max_parallel_steps": 10}', 'c', 10,
			(SELECT jsonb_agg(jsonb_build_object('position', p, 'name', 'step_' || p, 'attempt_limit', 3, 'handler', 'h', 'depends_on', CASE p WHEN 0 THEN '[]' ELSE jsonb_build_array(p - 1) END))
			 FROM generate_series(0, 9) AS p));
		SELECT tasker.register_template('n', 'ruby', '1.0.0', '', '{"max_parallel_steps": 10}', 'c', 10,
			'[{"position": 0, "name": "only", "attempt_limit": 3, "handler_class": "Noop"}]')`, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	var chain int64
	if err := m.admin.QueryRow(ctx, `SELECT template_id FROM tasker.task_templates WHERE name = 'chain'`).Scan(&chain); err != nil {
		t.Fatal(err)
	}
	// As a worker does with the first task of a template.
	if _, err := m.admin.Exec(ctx, `UPDATE tasker.task_templates SET used_at = now()`); err != nil {
		t.Fatal(err)
	}
	s := store.New(m.pool)
	worker, err := s.RegisterWorker(ctx, "w", "c", time.Hour, map[string]any{})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.explain(ctx); err != nil {
		t.Fatal(err)
	}
	const warm = 20 // plans are made, and tables have pages
	m.journey(warm, s, worker, []int64{chain})
	m.ruby(warm, s, worker)
	m.costs = nil
	for _, n := range []int{1, 100} {
		m.journey(n, s, worker, []int64{chain})
		m.ruby(n, s, worker)
	}
	compareCosts(t, m.costs)
}

func compareCosts(t *testing.T, got []cost) {
	t.Helper()
	const line = "%-40s %6d %10d %7d %9.0f %12.1f\n"
	table := &strings.Builder{}
	fmt.Fprintf(table, "%-40s %6s %10s %7s %9s %12s\n", "what", "steps", "statements", "inside", "WAL/step", "allocs/step")
	for _, c := range got {
		fmt.Fprintf(table, line, c.what, c.steps, c.statements, c.inside, c.wal, c.allocations)
	}
	if *update {
		if err := os.WriteFile(costsFile, []byte(table.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	golden, err := os.ReadFile(costsFile)
	if err != nil {
		t.Fatal(err)
	}
	wants := strings.Split(strings.TrimSpace(string(golden)), "\n")[1:]
	if len(wants) != len(got) {
		t.Fatalf("%s has %d lines, and there are %d; -update rewrites it\n%s", costsFile, len(wants), len(got), table)
	}
	for i, c := range got {
		var want cost
		if _, err := fmt.Sscanf(wants[i][40:], "%d %d %d %f %f", &want.steps, &want.statements, &want.inside, &want.wal, &want.allocations); err != nil {
			t.Fatalf("%s: line %q: %v", costsFile, wants[i], err)
		}
		want.what = strings.TrimSpace(wants[i][:40])
		// How an index page splits, and a number's digits, is a matter of a few per cent.
		near := func(a, b, more float64) bool { return a <= b*1.03+1+more && a >= b*0.97-1-more }
		const pageHeader = 24 // of the log: whether one comes in between is chance
		if c.what != want.what || c.steps != want.steps || c.statements != want.statements || c.inside != want.inside ||
			!near(c.wal, want.wal, pageHeader/float64(c.steps)) || !near(c.allocations, want.allocations, 0) {
			t.Errorf("costs have changed\nfrom "+line+"  to "+line+"if that is meant: go test ./store -run TestWhatAStepCosts -update",
				want.what, want.steps, want.statements, want.inside, want.wal, want.allocations, c.what, c.steps, c.statements, c.inside, c.wal, c.allocations)
		}
	}
}
