package store_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/dag"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// tasksPerTemplate is how many tasks of one template a query compares.
const tasksPerTemplate = 60

// caseTask is a task in any state, with steps in any states: also in some that
// the engine never writes, such as a step that runs before its dependencies.
type caseTask struct {
	id     int64
	state  tasker.TaskState
	runsIn time.Duration // 0: no run_at
	paused bool
	states []tasker.StepState
	due    []time.Duration // of steps in waiting_for_retry: from now
	used   []int
}

// caseTemplate is what a case's tasks have in common.
type caseTemplate struct {
	steps       []tasker.StepTemplate
	graph       *dag.Graph
	maxParallel int
	failFast    bool
}

// The handlers that a worker of the test has, and one that nobody has.
const (
	known   = "known"
	unknown = "unknown"
)

func anyTemplate(t *rapid.T) *caseTemplate {
	c := &caseTemplate{
		steps:       make([]tasker.StepTemplate, rapid.IntRange(1, 10).Draw(t, "steps")),
		maxParallel: rapid.SampledFrom([]int{1, 2, 100}).Draw(t, "max parallel"),
		failFast:    rapid.IntRange(0, 3).Draw(t, "fail fast") == 0,
	}
	turn := rapid.Permutation(identity(len(c.steps))).Draw(t, "order") // templates need not be in the order of their edges
	for k, i := range turn {
		c.steps[i].Name = "s" + strconv.Itoa(i)
		c.steps[i].RetryLimit, c.steps[i].Retryable = 3, true
		switch rapid.IntRange(0, 5).Draw(t, "handler") {
		case 0:
			c.steps[i].Handler = unknown
		case 1, 2:
			c.steps[i].Handler = known
		default:
			c.steps[i].HandlerClass = "Known"
		}
		if k > 0 {
			for _, d := range rapid.SliceOfN(rapid.IntRange(0, k-1), 0, 3).Draw(t, "after") {
				c.steps[i].DependsOn = append(c.steps[i].DependsOn, "s"+strconv.Itoa(turn[d]))
			}
		}
	}
	var err error
	if c.graph, err = dag.New(c.steps); err != nil {
		t.Fatal(err)
	}
	return c
}

func identity(n int) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = i
	}
	return list
}

func anyTask(t *rapid.T, c *caseTemplate, id int64) *caseTask {
	task := &caseTask{id: id, state: rapid.SampledFrom([]tasker.TaskState{
		tasker.TaskInProgress, tasker.TaskInProgress, tasker.TaskInProgress, tasker.TaskInProgress, tasker.TaskInProgress, tasker.TaskInProgress,
		tasker.TaskPending, tasker.TaskComplete, tasker.TaskError, tasker.TaskCancelled, tasker.TaskResolvedManually,
	}).Draw(t, "task")}
	if task.state == tasker.TaskPending {
		task.runsIn = rapid.SampledFrom([]time.Duration{0, -time.Hour, time.Hour}).Draw(t, "runs in")
	}
	task.paused = rapid.IntRange(0, 9).Draw(t, "paused") == 0
	for range c.steps {
		task.states = append(task.states, rapid.SampledFrom([]tasker.StepState{
			tasker.StepPending, tasker.StepPending, tasker.StepPending, tasker.StepWaitingForRetry, tasker.StepWaitingForRetry,
			tasker.StepComplete, tasker.StepComplete, tasker.StepComplete, tasker.StepComplete, tasker.StepSkipped, tasker.StepResolvedManually,
			tasker.StepEnqueued, tasker.StepInProgress, tasker.StepError, tasker.StepCancelled,
		}).Draw(t, "state"))
		history := rapid.IntRange(0, 7).Draw(t, "history")
		task.due = append(task.due, []time.Duration{-time.Hour, time.Hour}[history%2])
		task.used = append(task.used, history/2)
	}
	return task
}

// reason says by dag.Progress, and by what the view's reasons are defined as,
// why step i is where it is.
func (c *caseTemplate) reason(task *caseTask, p *dag.Progress, i int) string {
	s := task.states[i]
	viable, retryable := slices.Contains(p.Viable(), i), slices.Contains(p.Retryable(), i)
	switch {
	case s.Satisfied() || s == tasker.StepCancelled:
		return "finished"
	case s == tasker.StepError && task.used[i] >= c.steps[i].AttemptLimit():
		return "attempts_exhausted"
	case s == tasker.StepError:
		return "failed"
	case task.state == tasker.TaskCancelled:
		return "task_cancelled"
	case s == tasker.StepInProgress:
		return "running"
	case s == tasker.StepEnqueued:
		return "enqueued"
	case task.state == tasker.TaskComplete || task.state == tasker.TaskResolvedManually:
		return "task_finished"
	case p.Blocked(i):
		return "blocked"
	case task.state == tasker.TaskError:
		return "task_finished"
	case task.paused:
		return "paused"
	case task.runsIn > 0:
		return "scheduled"
	case !viable && !retryable:
		return "dependencies"
	case c.failFast && p.Failed() > 0:
		return "fail_fast"
	case retryable && task.due[i] > 0:
		return "backoff"
	case p.Outstanding() >= c.maxParallel:
		return "at_limit"
	case c.steps[i].Handler == unknown:
		return "no_handler_alive"
	}
	return "ready"
}

// insert writes the template and its tasks as they are, past the triggers.
func (c *caseTemplate) insert(t *rapid.T, tx pgx.Tx, tasks []*caseTask) {
	ctx := t.Context()
	template := tasks[0].id
	copyFrom := func(table string, columns []string, rows [][]any) {
		if _, err := tx.CopyFrom(ctx, pgx.Identifier{"tasker", table}, columns, pgx.CopyFromRows(rows)); err != nil {
			t.Fatalf("fill tasker.%s: %v", table, err)
		}
	}
	definition := json.RawMessage(`{}`)
	if c.failFast {
		definition = json.RawMessage(`{"on_failure": "fail_fast"}`)
	}
	copyFrom("task_templates", []string{"template_id", "namespace", "name", "version", "definition", "checksum", "max_parallel_steps"},
		[][]any{{template, "test", "t" + strconv.FormatInt(template, 10), "1.0.0", definition, "", c.maxParallel}})
	var rows [][]any
	for i := range c.steps {
		s := &c.steps[i]
		rows = append(rows, []any{template, i, s.Name, nothing(s.HandlerClass), nothing(s.Handler), append([]int{}, c.graph.Dependencies(i)...), s.AttemptLimit()})
	}
	copyFrom("template_steps", []string{"template_id", "position", "name", "handler_class", "handler", "depends_on", "attempt_limit"}, rows)

	rows = nil
	var steps [][]any
	now := time.Now()
	for _, task := range tasks {
		var at, paused *time.Time
		if task.paused {
			paused = &now
		}
		if task.runsIn != 0 {
			at = new(now.Add(task.runsIn))
		}
		rows = append(rows, []any{task.id, template, "test", "t", "1.0.0", string(task.state), at, paused})
		for i, s := range task.states {
			var due *time.Time
			if s == tasker.StepWaitingForRetry {
				due = new(now.Add(task.due[i]))
			}
			const losses, forgiven = 2, 3 // they don't count
			steps = append(steps, []any{task.id, i, c.steps[i].Name, string(s), task.used[i] + losses + forgiven, losses, forgiven, due})
		}
	}
	copyFrom("tasks", []string{"task_id", "template_id", "namespace", "name", "version", "state", "run_at", "paused_at"}, rows)
	copyFrom("steps", []string{"task_id", "position", "name", "state", "attempts", "losses", "forgiven", "retry_at"}, steps)
}

func nothing(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// readiness is a row of the view, as far as it is compared.
type readiness struct {
	TaskID           int64
	Position         int
	Name, State      string
	Ready            bool
	Reason, Words    string
	Total, Satisfied int
	WaitingOn        []string
	Used, Limit      int
	InSeconds        *float64
}

// Two definitions of readiness are one too many, unless they are held against
// each other. The loop believes dag.Progress; people and pages read the view.
func TestTheViewAgreesWithTheGraph(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	pool := testenv.Pool(t, testenv.Database(t))
	if _, err := store.New(pool).RegisterWorker(ctx, "w", "w", time.Hour, map[string][]string{"handlers": {known}}); err != nil {
		t.Fatal(err)
	}
	conn, err := pool.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	// Without triggers any state can be written. Without statistics the planner
	// would read whole tables, and compile its plans, for what look like many rows.
	if _, err := conn.Exec(ctx, `SET session_replication_role = replica; SET enable_seqscan = off; SET jit = off;
		UPDATE tasker.workers SET last_seen_at = now() + interval '1 hour'; SELECT tasker.register_process('p');
		UPDATE tasker.processes SET last_seen_at = now() + interval '1 hour'`); err != nil {
		t.Fatal(err)
	}
	next, compared, seen := int64(1), 0, map[string]int{}
	property := func(t *rapid.T) {
		c := anyTemplate(t)
		tasks := make([]*caseTask, tasksPerTemplate)
		for k := range tasks {
			tasks[k] = anyTask(t, c, next)
			next++
		}
		tx, err := conn.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback(ctx) }() // nothing of it is wanted
		c.insert(t, tx, tasks)

		rows, err := tx.Query(ctx, `SELECT task_id, position, name, state, ready, reason, explanation, dependencies_total, dependencies_satisfied,
			waiting_on, attempts_used, attempt_limit, seconds_until_retry
			FROM tasker.step_readiness WHERE task_id BETWEEN $1 AND $2 ORDER BY task_id, position`, tasks[0].id, next-1)
		if err != nil {
			t.Fatal(err)
		}
		all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[readiness])
		if err != nil {
			t.Fatal(err)
		}
		if len(all) != len(tasks)*len(c.steps) {
			t.Fatalf("%d rows for %d tasks of %d steps", len(all), len(tasks), len(c.steps))
		}
		for k, task := range tasks {
			p := dag.NewProgress(c.graph, task.states)
			for i := range c.steps {
				row := &all[k*len(c.steps)+i]
				if fault := c.compare(task, p, i, row); fault != "" {
					t.Fatalf("step %d: %s\ntask %s, steps %v\nedges %s\nrow %+v", i, fault, task.state, task.states, c.edges(), *row)
				}
				seen[row.Reason]++
			}
			compared++
		}
	}
	for range 4 { // as often as -rapid.checks says, each with many tasks
		rapid.Check(t, property)
	}
	t.Logf("%d tasks compared; reasons: %v", compared, seen)
}

// compare says how a row differs from what the graph says.
func (c *caseTemplate) compare(task *caseTask, p *dag.Progress, i int, row *readiness) string {
	reason := c.reason(task, p, i)
	var waiting []string
	for _, d := range c.graph.Dependencies(i) {
		if !task.states[d].Satisfied() {
			waiting = append(waiting, c.steps[d].Name)
		}
	}
	total := len(c.graph.Dependencies(i))
	switch {
	case row.Reason != reason:
		return fmt.Sprintf("the view says %s, the graph %s", row.Reason, reason)
	case row.Ready != (reason == "ready"):
		return fmt.Sprintf("ready is %t, and the reason %s", row.Ready, reason)
	case row.Total != total || row.Satisfied != total-len(waiting) || !slices.Equal(row.WaitingOn, waiting):
		return fmt.Sprintf("it waits for %v of %d dependencies", waiting, total)
	case row.Used != task.used[i] || row.Limit != c.steps[i].AttemptLimit():
		return fmt.Sprintf("%d attempts are used up", task.used[i])
	case (row.InSeconds != nil) != (task.states[i] == tasker.StepWaitingForRetry):
		return "seconds_until_retry is given for a step that doesn't wait, or the other way round"
	case row.InSeconds != nil && (*row.InSeconds > 0) != (task.due[i] > 0):
		return fmt.Sprintf("its retry is due in %s", task.due[i])
	case row.Words == "":
		return "there is no explanation"
	}
	return ""
}

func (c *caseTemplate) edges() string {
	var text string
	for i := range c.steps {
		text += fmt.Sprintf("%d%v ", i, c.graph.Dependencies(i))
	}
	return text
}
