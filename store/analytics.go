package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype/zeronull"

	"github.com/taskerhq/tasker"
)

// RollUp reads up to most events and adds them to the counts that analytics are
// made of. It returns how many it read: most, where there may be more. Where
// another is at it, or it is too soon after much work, it reads none.
func (s *Store) RollUp(ctx context.Context, most int) (read int, err error) {
	var n *int
	if err := s.pool.QueryRow(ctx, `SELECT tasker.roll_up($1)`, most).Scan(&n); err != nil {
		return 0, fmt.Errorf("add events to the counts: %w", err)
	}
	if n != nil {
		read = *n
	}
	return read, nil
}

// PruneStats drops counts that are older.
func (s *Store) PruneStats(ctx context.Context, keep time.Duration) error {
	if _, err := s.pool.Exec(ctx, `SELECT tasker.prune_stats($1)`, keep); err != nil {
		return fmt.Errorf("drop old counts: %w", err)
	}
	return nil
}

// Scope is what analytics are asked about. Empty: all.
type Scope struct {
	Namespace string
	Name      string // of a template, all its versions
	Period    time.Duration
}

// args are the arguments that most functions begin with.
func (c Scope) args(more ...any) []any {
	return append([]any{c.Period, zeronull.Text(c.Namespace), zeronull.Text(c.Name)}, more...)
}

// Figure is how long something took, in seconds.
type Figure struct {
	Namespace string  `json:"namespace"`
	Name      string  `json:"name"`
	Step      string  `json:"step,omitempty"` // empty: the task
	Measure   Measure `json:"measure"`
	N         int64   `json:"n"`
	Mean      float64 `json:"mean"`
	P50       float64 `json:"p50"`
	P90       float64 `json:"p90"`
	P95       float64 `json:"p95"`
	P99       float64 `json:"p99"`
}

// Measure is what a figure measures.
type Measure string

// The measures.
const (
	MeasureRun     Measure = "run"     // an attempt; a task from its start to its end
	MeasureWait    Measure = "wait"    // a task until a worker takes it; a step from being ready to the start of its first attempt
	MeasureTotal   Measure = "total"   // a task from its insert to its end
	MeasureBackoff Measure = "backoff" // before another attempt
)

// Figures are the durations of a period.
func (s *Store) Figures(ctx context.Context, c Scope) ([]Figure, error) {
	rows, err := s.pool.Query(ctx, `SELECT namespace, name, coalesce(step, ''), measure, n, mean, p50, p90, p95, p99 FROM tasker.figures($1, $2, $3)`, c.args()...)
	return collect[Figure](rows, err, "durations")
}

// Outcome is how often what happened.
type Outcome struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Step      string `json:"step,omitempty"` // empty: to the tasks
	Created   int64  `json:"created"`        // tasks only
	Completed int64  `json:"completed"`
	Failed    int64  `json:"failed"` // for good
	Cancelled int64  `json:"cancelled"`
	Resolved  int64  `json:"resolved"`
	Skipped   int64  `json:"skipped"`
	Retried   int64  `json:"retried"`   // attempts after which another followed
	Recovered int64  `json:"recovered"` // steps that completed after their first attempt
	Exhausted int64  `json:"exhausted"` // steps that failed after their first attempt

	// Of how many there is a duration, and their seconds in sum: of MeasureRun,
	// MeasureWait and MeasureTotal.
	Ran           int64   `json:"ran"`
	RanSeconds    float64 `json:"ran_seconds"`
	Waited        int64   `json:"waited"`
	WaitedSeconds float64 `json:"waited_seconds"`
	Took          int64   `json:"took"`
	TookSeconds   float64 `json:"took_seconds"`
}

// Outcomes counts what happened in a period.
func (s *Store) Outcomes(ctx context.Context, c Scope) ([]Outcome, error) {
	rows, err := s.pool.Query(ctx, `SELECT namespace, name, coalesce(step, ''), created, completed, failed, cancelled, resolved, skipped, retried, recovered, exhausted,
			ran, ran_seconds, waited, waited_seconds, took, took_seconds FROM tasker.outcomes($1, $2, $3)`, c.args()...)
	return collect[Outcome](rows, err, "outcomes")
}

// Bar is one of a histogram.
type Bar struct {
	AtLeast float64 `json:"at_least"` // seconds
	Below   float64 `json:"below"`
	N       int64   `json:"n"`
}

// Histogram is how the durations of one step are spread, or, with step empty, of the
// tasks. The scope has a namespace and a name.
func (s *Store) Histogram(ctx context.Context, c Scope, step string, m Measure) ([]Bar, error) {
	rows, err := s.pool.Query(ctx, `SELECT at_least, below, n FROM tasker.histogram($1, $2, $3, $4, $5)`, c.args(zeronull.Text(step), string(m))...)
	return collect[Bar](rows, err, "a histogram")
}

// Slow is a task or step that took long.
type Slow struct {
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	Version   string    `json:"version"`
	Step      string    `json:"step,omitempty"`
	Task      int64     `json:"task_id"`
	Seconds   float64   `json:"seconds"` // of a task from its insert, of a step its last attempt
	EndedAt   time.Time `json:"ended_at"`
}

// Slowest are the tasks, or the steps, that took longest in a period.
func (s *Store) Slowest(ctx context.Context, c Scope, steps bool, most int) ([]Slow, error) {
	rows, err := s.pool.Query(ctx, `SELECT namespace, name, version, coalesce(step, ''), task_id, seconds, ended_at FROM tasker.slowest($1, $2, $3, $4, $5)`, c.args(steps, most)...)
	return collect[Slow](rows, err, "what took longest")
}

// Failure is a kind of failure, and how often it came.
type Failure struct {
	Fingerprint string    `json:"fingerprint"`
	Namespace   string    `json:"namespace"`
	Name        string    `json:"name"`
	Step        string    `json:"step"`
	N           int64     `json:"n"` // attempts
	Class       string    `json:"class"`
	Message     string    `json:"message"` // of the last
	Task        int64     `json:"task_id"` // of the last
	LastAt      time.Time `json:"last_at"`
}

// Failures are the most frequent kinds of a period.
func (s *Store) Failures(ctx context.Context, c Scope, most int) ([]Failure, error) {
	rows, err := s.pool.Query(ctx, `SELECT fingerprint, namespace, name, step, n, class, message, task_id, last_at FROM tasker.failures($1, $2, $3, $4)`, c.args(most)...)
	return collect[Failure](rows, err, "failures")
}

// Waiting is what some of the open tasks wait for.
type Waiting struct {
	Namespace string  `json:"namespace"`
	Name      string  `json:"name"`
	Step      string  `json:"step,omitempty"`
	Reason    string  `json:"reason"`       // paused, scheduled, worker, limit, queue, retry or handler
	Of        string  `json:"of,omitempty"` // the limit, the queue or the handler
	Tasks     int64   `json:"tasks"`
	Oldest    float64 `json:"oldest_seconds"` // 0: not known
	Task      int64   `json:"task_id"`        // one of them
}

// WaitingNow says what the oldest open tasks wait for, most of them looked at.
func (s *Store) WaitingNow(ctx context.Context, most int) ([]Waiting, error) {
	rows, err := s.pool.Query(ctx, `SELECT namespace, name, coalesce(step, ''), reason, coalesce(of, ''), tasks, coalesce(oldest_seconds, 0), task_id FROM tasker.waiting_now($1)`, most)
	return collect[Waiting](rows, err, "what is waited for")
}

// Load is what a worker holds.
type Load struct {
	Worker int64  `json:"worker_id"`
	Name   string `json:"name"`
	Tasks  int    `json:"tasks"`
	Most   int    `json:"max_tasks"`
}

// Loads is what the workers hold that are alive.
func (s *Store) Loads(ctx context.Context) ([]Load, error) {
	rows, err := s.pool.Query(ctx, `SELECT w.worker_id, w.name, (SELECT count(*) FROM tasker.tasks t WHERE t.owner = w.worker_id), coalesce((w.details ->> 'max_tasks')::int, 0)
		FROM tasker.workers w WHERE w.state = 'alive' AND w.last_seen_at > now() - 2 * w.lease ORDER BY w.worker_id`)
	return collect[Load](rows, err, "workers")
}

// GateUse is how much of a limit is used.
type GateUse struct {
	Scope   string   `json:"scope"`
	Name    string   `json:"name"`
	Most    *int     `json:"max_attempts"`
	Rate    *float64 `json:"per_second"`
	Taken   int      `json:"taken"`
	Waiting int      `json:"waiting"`        // attempts in line, counted up to 10,000
	Oldest  float64  `json:"oldest_seconds"` // of those
	Paused  bool     `json:"paused"`
}

// GateUses are the limits and pauses that are set.
func (s *Store) GateUses(ctx context.Context) ([]GateUse, error) {
	rows, err := s.pool.Query(ctx, `SELECT g.scope, g.name, g.max_attempts, g.per_second, (SELECT count(*) FROM tasker.gate_slots s WHERE s.gate_id = g.gate_id),
			w.n, coalesce(extract(epoch FROM now() - w.since), 0)::float8, g.paused_at IS NOT NULL
		FROM tasker.gates g CROSS JOIN LATERAL (
			SELECT count(*) AS n, min(l.since) AS since FROM (SELECT v.since FROM tasker.gate_waiters v WHERE v.gate_id = g.gate_id AND v.admitted_until IS NULL LIMIT 10000) l) w
		WHERE g.max_attempts IS NOT NULL OR g.per_second IS NOT NULL OR g.paused_at IS NOT NULL ORDER BY w.n DESC, g.scope, g.name`)
	return collect[GateUse](rows, err, "limits")
}

// Total is how often something happened, ever, or how often it took so long.
type Total struct {
	Namespace, Name, Step string // Step empty: to the tasks
	Measure               string // a Measure, or what happened: created, completed, failed, …
	Bucket                int    // of a Measure: from 2^(b/8) to 2^((b+1)/8) seconds
	N                     int64
	Seconds               float64 // their sum
}

// Totals are all that was ever counted.
func (s *Store) Totals(ctx context.Context) ([]Total, error) {
	rows, err := s.pool.Query(ctx, `SELECT namespace, name, coalesce(step, ''), measure, bucket, n, seconds FROM tasker.totals()`)
	return collect[Total](rows, err, "totals")
}

// OpenDeadLetters counts tasks that are listed as such, up to 10,000.
func (s *Store) OpenDeadLetters(ctx context.Context) (n int64, err error) {
	if err := s.pool.QueryRow(ctx, `SELECT count(*) FROM (SELECT FROM tasker.dead_letters WHERE resolved_at IS NULL LIMIT 10000) l`).Scan(&n); err != nil {
		return 0, fmt.Errorf("count dead letters: %w", err)
	}
	return n, nil
}

// StatsAsOf is until when what ended is in the counts; zero: nothing is, yet.
func (s *Store) StatsAsOf(ctx context.Context) (time.Time, error) {
	var at *time.Time
	if err := s.pool.QueryRow(ctx, `SELECT as_of FROM tasker.stats_progress`).Scan(&at); err != nil {
		return time.Time{}, fmt.Errorf("read analytics: %w", err)
	}
	if at == nil {
		return time.Time{}, nil
	}
	return at.UTC(), nil
}

// StepHistory is a step of a task and what is known of its attempts.
type StepHistory struct {
	ID         int64
	Position   int
	Name       string
	State      tasker.StepState
	DependsOn  []int
	Attempts   int
	StartedAt  *time.Time // of the last attempt
	FinishedAt *time.Time
	RetryAt    *time.Time
	Events     []StepEvent // those of attempts, in order
}

// StepEvent is one of a step's.
type StepEvent struct {
	Name    tasker.EventName
	Attempt int
	At      time.Time // of the last attempt to the microsecond, else when its transaction began
	Class   string    // of a failure
	Message string
}

// TaskHistory is all that is kept of a task's course.
type TaskHistory struct {
	Task  TaskSummary
	RunAt *time.Time
	Now   time.Time // of the database
	Steps []StepHistory
}

// History reads the course of a task, as of one moment and in one round trip.
func (s *Store) History(ctx context.Context, id int64) (*TaskHistory, error) {
	var (
		h     TaskHistory
		step  int64
		batch pgx.Batch
		at    = map[int64]int{}
	)
	batch.Queue(`BEGIN READ ONLY, ISOLATION LEVEL REPEATABLE READ`)
	batch.Queue(`SELECT `+summaryColumns+` FROM tasker.task_summaries WHERE task_id = $1`, id).Query(func(rows pgx.Rows) (err error) {
		h.Task, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[TaskSummary])
		return err
	})
	batch.Queue(`SELECT run_at, clock_timestamp() FROM tasker.tasks WHERE task_id = $1`, id).QueryRow(func(row pgx.Row) error { return row.Scan(&h.RunAt, &h.Now) })
	batch.Queue(`SELECT s.step_id, s.position, s.name, s.state, ts.depends_on, s.attempts, s.started_at, s.finished_at, s.retry_at
		FROM tasker.tasks t JOIN tasker.steps s USING (task_id) JOIN tasker.template_steps ts ON ts.template_id = t.template_id AND ts.position = s.position
		WHERE t.task_id = $1 ORDER BY s.position`, id).Query(func(rows pgx.Rows) error {
		var l StepHistory
		_, err := pgx.ForEachRow(rows, []any{&step, &l.Position, &l.Name, &l.State, &l.DependsOn, &l.Attempts, &l.StartedAt, &l.FinishedAt, &l.RetryAt}, func() error {
			at[step] = len(h.Steps)
			l.ID = step
			h.Steps = append(h.Steps, l)
			l = StepHistory{}
			return nil
		})
		return err
	})
	batch.Queue(`SELECT e.step_id, e.name, e.attempt, e.created_at, coalesce(e.data ->> 'class', ''), coalesce(e.data ->> 'message', '')
		FROM tasker.events e WHERE e.task_id = $1 AND e.step_id IS NOT NULL AND e.attempt IS NOT NULL AND e.name LIKE 'step.%' ORDER BY e.event_id`, id).Query(func(rows pgx.Rows) error {
		var e StepEvent
		_, err := pgx.ForEachRow(rows, []any{&step, &e.Name, &e.Attempt, &e.At, &e.Class, &e.Message}, func() error {
			if i, known := at[step]; known {
				h.Steps[i].Events = append(h.Steps[i].Events, e)
			}
			return nil
		})
		return err
	})
	batch.Queue(`COMMIT`)
	if err := s.pool.SendBatch(ctx, &batch).Close(); err != nil {
		return nil, fmt.Errorf("task %d: %w", id, translate(err))
	}
	for i := range h.Steps {
		h.Steps[i].settleTimes()
	}
	return &h, nil
}

// settleTimes gives the events of the last attempt the times that are kept with the
// step, to the microsecond: an event has the time at which its transaction began.
func (s *StepHistory) settleTimes() {
	for k := range s.Events {
		e := &s.Events[k]
		switch e.Name {
		case tasker.EventStepStarted:
			if e.Attempt == s.Attempts && s.StartedAt != nil {
				e.At = *s.StartedAt
			}
		case tasker.EventStepCompleted, tasker.EventStepFailed, tasker.EventStepCancelled, tasker.EventStepSkipped, tasker.EventStepResolved:
			if k == len(s.Events)-1 && s.FinishedAt != nil {
				e.At = *s.FinishedAt
			}
		default: // no attempt begins or ends
		}
	}
}

// Identity tells this database from others: when its schema was made.
func (s *Store) Identity(ctx context.Context) (id string, err error) {
	if err := s.pool.QueryRow(ctx, `SELECT current_database() || ' ' || extract(epoch FROM min(applied_at)) FROM tasker.schema_migrations`).Scan(&id); err != nil {
		return "", fmt.Errorf("tell the database from others: %w", err)
	}
	return id, nil
}

// collect reads rows whose columns are the fields of T, in order.
func collect[T any](rows pgx.Rows, err error, what string) ([]T, error) {
	if err == nil {
		var all []T
		if all, err = pgx.CollectRows(rows, pgx.RowToStructByPos[T]); err == nil {
			return all, nil
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("read %s: no answer in time: %w", what, err)
	}
	return nil, fmt.Errorf("read %s: %w", what, err)
}

// Span is a part of a period.
type Span struct {
	Since     time.Time `json:"since"`
	Minutes   int       `json:"minutes"`
	Created   int64     `json:"created"` // tasks
	Completed int64     `json:"completed"`
	Failed    int64     `json:"failed"`
	Mean      float64   `json:"mean_seconds"` // of a task, from its insert to its end; 0: none ended
	Attempts  int64     `json:"attempts"`     // of steps, that ended
	Retried   int64     `json:"retried"`      // of those, after which another followed
}

// Trend is how a period went.
func (s *Store) Trend(ctx context.Context, c Scope) ([]Span, error) {
	rows, err := s.pool.Query(ctx, `SELECT since, minutes, created, completed, failed, coalesce(mean_total, 0), attempts, retried FROM tasker.trend($1, $2, $3)`, c.args()...)
	return collect[Span](rows, err, "how a period went")
}

// QueueUse is how many attempts a Sidekiq queue holds.
type QueueUse struct {
	Name    string  `json:"name"`
	Waiting int     `json:"waiting"`
	Running int     `json:"running"`
	Oldest  float64 `json:"oldest_seconds"` // since when the first waits, about
	Threads int     `json:"threads"`        // of the processes that live and take from it
}

// queueSample is how many attempts QueueUses counts at most.
const queueSample = 50_000

// QueueUses are the queues that attempts are in. A process counts as alive that has
// been heard of within the time.
func (s *Store) QueueUses(ctx context.Context, within time.Duration) ([]QueueUse, error) {
	rows, err := s.pool.Query(ctx, `SELECT d.queue, count(*) FILTER (WHERE d.started_at IS NULL), count(*) FILTER (WHERE d.started_at IS NOT NULL),
			coalesce(extract(epoch FROM clock_timestamp() - min(d.looked_at) FILTER (WHERE d.started_at IS NULL)), 0)::float8, 0
		FROM (SELECT * FROM tasker.dispatches LIMIT $1) d GROUP BY 1 ORDER BY 2 DESC, 1`, queueSample)
	uses, err := collect[QueueUse](rows, err, "queues")
	if err != nil {
		return nil, err
	}
	processes, err := s.Processes(ctx, within)
	if err != nil {
		return nil, err
	}
	for i := range uses {
		for _, p := range processes {
			if slices.Contains(p.Queues, uses[i].Name) {
				uses[i].Threads += p.Concurrency
			}
		}
	}
	return uses, nil
}
