package store_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/testenv"
)

// planner is a connection that tells how it carries out each statement, also
// those inside functions.
type planner struct {
	pool  *pgxpool.Pool
	mu    sync.Mutex
	plans []string
	sent  int // statements that were sent
}

// TraceQueryStart counts; see pgx.QueryTracer.
func (p *planner) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent++
	return ctx
}

// TraceQueryEnd has nothing to do.
func (p *planner) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func newPlanner(t *testing.T, url string) *planner {
	t.Helper()
	p := &planner{}
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	config.ConnConfig.Tracer = p
	config.MaxConns = 1 // its cached plans are what the test is about
	config.ConnConfig.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.plans = append(p.plans, n.Message)
	}
	if p.pool, err = pgxpool.NewWithConfig(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.pool.Close)
	return p
}

// explain makes the connection tell, from now on.
func (p *planner) explain(ctx context.Context) error {
	_, err := p.pool.Exec(ctx, `LOAD 'auto_explain'; SET auto_explain.log_min_duration = 0; SET auto_explain.log_nested_statements = on; SET auto_explain.log_analyze = on;
		SET auto_explain.log_timing = off; SET auto_explain.log_buffers = on; SET auto_explain.log_level = notice`)
	p.plans = nil
	return err
}

var (
	node    = regexp.MustCompile(`(?m)^\s*(?:->\s+)?(.*?)\s+\(cost=.*\(actual rows=(\d+) loops=(\d+)\)$`)
	removed = regexp.MustCompile(`Rows Removed by .*: (\d+)`)
	seqScan = regexp.MustCompile(`Seq Scan on (tasks|steps|events|dispatches|river_job)\b`)
)

// excess finds what in a plan of n tasks looks at more rows than there is reason
// to: more than all of their steps, or more than a few that are of no use.
func excess(plan string, n int) []string {
	var found []string
	loops := 1
	for line := range strings.SplitSeq(plan, "\n") {
		if m := node.FindStringSubmatch(line); m != nil {
			rows, _ := strconv.Atoi(m[2])
			loops, _ = strconv.Atoi(m[3])
			if rows*loops > n*perTask {
				found = append(found, fmt.Sprintf("%s gives %d rows", m[1], rows*loops))
			}
			if seqScan.MatchString(line) {
				found = append(found, strings.TrimSpace(line))
			}
		}
		if m := removed.FindStringSubmatch(line); m != nil {
			if rows, _ := strconv.Atoi(m[1]); rows*loops > 2*n {
				found = append(found, fmt.Sprintf("%s, %d times", strings.TrimSpace(line), loops))
			}
		}
	}
	return found
}

var (
	queryText = regexp.MustCompile(`(?s)Query Text: (.*?)\n((?:\w| +->).*)`)
	ofADay    = regexp.MustCompile(`events_\d{8}`)
)

// shape is what a plan is without its figures: how it gets at which rows.
func shape(plan string) string {
	m := queryText.FindStringSubmatch(plan)
	if m == nil {
		return ""
	}
	out := &strings.Builder{}
	fmt.Fprintf(out, "%.100s\n", strings.Join(strings.Fields(m[1]), " "))
	for line := range strings.SplitSeq(m[2], "\n") {
		if at := strings.Index(line, "  (cost="); at > 0 {
			fmt.Fprintf(out, "    %s\n", ofADay.ReplaceAllString(line[:at], "events_DAY"))
		} else if cte := strings.TrimSpace(line); strings.HasPrefix(cte, "CTE ") || strings.HasPrefix(cte, "SubPlan") || strings.HasPrefix(cte, "InitPlan") {
			fmt.Fprintf(out, "    %s\n", line)
		}
	}
	return out.String()
}

// perTask is how many steps a task of the test has.
const perTask = 12

// life takes n tasks through all of their life, by every statement that is on the
// way of a step; of their steps, one in Go and one in Ruby are run. Tasks of
// opening templates are claimed together with their first attempts.
func life(ctx context.Context, t *testing.T, s *store.Store, pool *pgxpool.Pool, worker int64, n int, opening ...int64) {
	t.Helper()
	var tasks []int64
	rows, err := pool.Query(ctx, `INSERT INTO tasker.tasks (namespace, name) SELECT 'n', 'life' FROM generate_series(1, $1) RETURNING task_id`, n)
	if err == nil {
		tasks, err = pgx.CollectRows(rows, pgx.RowTo[int64])
	}
	if err != nil {
		t.Fatal(err)
	}
	// All in one call, which is what makes a bad plan bad.
	together := func(write func(task int64) error) {
		t.Helper()
		var all sync.WaitGroup
		for _, task := range tasks {
			all.Go(func() {
				if err := write(task); err != nil {
					t.Errorf("task %d: %v", task, err)
				}
			})
		}
		all.Wait()
	}
	claimer, writer := s.NewClaimer(ctx, worker), s.NewWriter(ctx, worker)
	claimer.Opening = func() ([]int64, int64) { return opening, 0 }
	var mu sync.Mutex
	steps := map[int64][]store.StepRow{}
	together(func(task int64) error {
		claimed, err := claimer.Claim(ctx, task)
		if err != nil || claimed == nil || len(claimed.Steps) != perTask {
			return fmt.Errorf("claimed: %v, %w", claimed, err)
		}
		mu.Lock()
		defer mu.Unlock()
		steps[task] = claimed.Steps
		return nil
	})
	step := func(task int64, i int, was, becomes tasker.StepState, attempt int, result string) store.StepWrite {
		w := store.StepWrite{Step: steps[task][i].StepID, Was: was, WasAttempt: attempt, State: becomes, Attempt: 1}
		if becomes == tasker.StepEnqueued {
			w.Queue = "default"
		}
		if result != "" {
			w.Result = json.RawMessage(result)
		}
		return w
	}
	write := func(unit func(task int64) *store.Unit) {
		t.Helper()
		together(func(task int64) error { return writer.Write(ctx, unit(task)) })
	}
	if len(opening) == 0 {
		write(func(task int64) *store.Unit {
			return &store.Unit{Task: task, Epoch: 1, Steps: []store.StepWrite{step(task, 0, tasker.StepPending, tasker.StepInProgress, 0, "")}}
		})
	}
	write(func(task int64) *store.Unit {
		return &store.Unit{Task: task, Epoch: 1, Steps: []store.StepWrite{step(task, 0, tasker.StepInProgress, tasker.StepComplete, 1, `{"n": 1}`),
			step(task, 1, tasker.StepPending, tasker.StepEnqueued, 0, "")}}
	})
	var out []int64
	for _, task := range tasks {
		out = append(out, steps[task][1].StepID)
	}
	if _, err := pool.Exec(ctx, `SELECT * FROM tasker.start_attempts($1, (SELECT array_agg(1) FROM unnest($1::bigint[])))`, out); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(ctx, `SELECT * FROM tasker.report_results((SELECT jsonb_agg(jsonb_build_object('step_id', id, 'attempt', 1, 'outcome', 'success', 'result', 1))
		FROM unnest($1::bigint[]) id), false)`, out); err != nil {
		t.Fatal(err)
	}
	if reports, err := s.Reports(ctx, out); err != nil || len(reports) != n {
		t.Fatalf("%d reports, %v", len(reports), err)
	}
	write(func(task int64) *store.Unit {
		unit := &store.Unit{Task: task, Epoch: 1, State: tasker.TaskComplete, Release: true, Needs: out[:1]}
		for i := 2; i < perTask; i++ {
			unit.Steps = append(unit.Steps, step(task, i, tasker.StepPending, tasker.StepSkipped, 0, ""))
		}
		return unit
	})
}

// What a statement of a step's way reads has to do with that step, also when its
// plan was made while the tables were empty, when the worker holds many other
// tasks, and when many are finished.
func TestHotStatementsReadOnlyWhatTheyAreAbout(t *testing.T) {
	t.Parallel()
	ctx, url := t.Context(), testenv.Database(t)
	fill := testenv.Pool(t, url)
	// The planner is to believe what it saw last.
	if _, err := fill.Exec(ctx, `DO $$ DECLARE t regclass; BEGIN
		FOR t IN SELECT c.oid FROM pg_class c WHERE c.relkind = 'r' AND c.relnamespace = 'tasker'::regnamespace
			AND (c.relname IN ('tasks', 'steps', 'dispatches', 'river_job') OR c.relispartition) LOOP
			EXECUTE format('ALTER TABLE %s SET (autovacuum_enabled = off)', t);
		END LOOP; END $$`); err != nil {
		t.Fatal(err)
	}
	if _, err := fill.Exec(ctx, `SELECT tasker.register_template('n', 'life', '1.0.0', '', '{"max_parallel_steps": 9}', 'c', 9,
		(SELECT jsonb_agg(jsonb_build_object('position', p, 'name', 's' || p, 'attempt_limit', 1)
				|| CASE p WHEN 0 THEN '{"handler": "h"}'::jsonb ELSE '{"handler_class": "H", "depends_on": [0]}' END)
			FROM generate_series(1, $1) i, LATERAL (SELECT i - 1) AS j(p)))`, pgx.QueryExecModeSimpleProtocol, perTask); err != nil {
		t.Fatal(err)
	}
	p := newPlanner(t, url)
	s := store.New(p.pool)
	s.Groups = store.Groups{Connections: 1}
	worker, err := s.RegisterWorker(ctx, "w", "c", time.Hour, map[string]any{})
	if err != nil {
		t.Fatal(err)
	}
	life(ctx, t, s, p.pool, worker, 3) // the plans are made
	life(ctx, t, s, p.pool, worker, 3, 1)
	if _, err := fill.Exec(ctx, `
		INSERT INTO tasker.tasks (namespace, name) SELECT 'n', 'life' FROM generate_series(1, 3000);
		UPDATE tasker.tasks SET state = 'in_progress', owner = $1, epoch = 1 WHERE state = 'pending';
		UPDATE tasker.steps SET state = 'in_progress', attempts = 1 WHERE state = 'pending' AND position = 0;
		UPDATE tasker.steps SET state = 'complete' WHERE state = 'in_progress';
		UPDATE tasker.steps SET state = 'enqueued', attempts = 1 WHERE state = 'pending' AND position = 1;
		UPDATE tasker.steps SET state = 'complete' WHERE state = 'enqueued' AND task_id % 3 > 0;
		UPDATE tasker.tasks SET state = 'complete', owner = NULL, finished_at = now() WHERE state = 'in_progress' AND task_id % 3 > 0;
		INSERT INTO tasker.dispatches (step_id, task_id, attempt, queue, awaited_by) SELECT step_id, task_id, 1, 'default', $1 FROM tasker.steps WHERE state = 'enqueued';
		DELETE FROM tasker.river_job WHERE id % 3 > 0`, pgx.QueryExecModeSimpleProtocol, worker); err != nil {
		t.Fatal(err)
	}
	if err := p.explain(ctx); err != nil {
		t.Fatal(err)
	}
	const n = 100
	var shapes []string
	for _, c := range []struct{ when, prepare string }{
		{"with the plans of the empty tables", ``},
		{"with plans of the full ones", `ANALYZE tasker.tasks, tasker.steps, tasker.events, tasker.dispatches, tasker.river_job, tasker.template_steps`},
	} {
		if _, err := fill.Exec(ctx, c.prepare); err != nil {
			t.Fatal(err)
		}
		p.plans = nil
		life(ctx, t, s, p.pool, worker, n)
		life(ctx, t, s, p.pool, worker, n, 1)
		if len(p.plans) < 40 {
			t.Fatalf("%s: only %d statements told their plans", c.when, len(p.plans))
		}
		for _, plan := range p.plans {
			if found := excess(plan, n); len(found) > 0 {
				t.Errorf("%s: %s\n%s", c.when, strings.Join(found, "; "), plan)
			}
			if c.prepare != "" {
				shapes = append(shapes, shape(plan))
			}
		}
	}
	slices.Sort(shapes)
	const file = "testdata/plans.golden"
	got := strings.Join(slices.Compact(shapes), "\n")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(file); err != nil || string(want) != got {
		t.Errorf("plans have changed, which may be meant: go test ./store -run TestHotStatements -update, and look at the difference (%v)", err)
	}
}
