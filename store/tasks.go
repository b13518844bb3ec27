package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/taskerhq/tasker"
)

// NewTask is what Enqueue needs; the fields are those of tasker.enqueue_task.
type NewTask struct {
	Namespace, Name, Version string // Version empty: the latest
	Context                  json.RawMessage
	Priority                 int // 0: the default
	RunAt                    *time.Time
	IdempotencyKey           string
	RefuseDuplicate          bool // else the id of the existing task is returned
	CorrelationID            string
	Tags                     []string
	Initiator                string
	SourceSystem             string
	Reason                   string
	BypassSteps              []string
	Deadline                 *time.Time
	ParentTaskID             int64 // the task whose step enqueues this one; 0: none
}

// Enqueue inserts a task, as any client may by SQL. A *RefusedError says what
// is wrong with it.
func (s *Store) Enqueue(ctx context.Context, t *NewTask) (int64, error) {
	onDuplicate := "return_existing"
	if t.RefuseDuplicate {
		onDuplicate = "refuse"
	}
	tags := t.Tags
	if tags == nil {
		tags = []string{}
	}
	var priority *int16
	if t.Priority < 0 || t.Priority > 4 { // beyond a smallint Postgres would see another number
		return 0, fmt.Errorf("enqueue %s/%s: %w", t.Namespace, t.Name, &RefusedError{Message: fmt.Sprintf("priority is a number from 1, which goes first, to 4, not %d", t.Priority)})
	}
	if t.Priority != 0 {
		priority = new(int16(t.Priority))
	}
	var id int64
	err := s.pool.QueryRow(ctx, `SELECT tasker.enqueue_task(namespace => $1, name => $2, version => $3, context => $4,
			priority => $5, run_at => $6, idempotency_key => $7, on_duplicate => $8, correlation_id => $9, tags => $10,
			initiator => $11, source_system => $12, reason => $13, bypass_steps => coalesce($14::text[], '{}'),
			deadline => $15, parent_task_id => nullif($16::bigint, 0))`,
		t.Namespace, t.Name, text(t.Version), t.Context, priority, t.RunAt, text(t.IdempotencyKey), onDuplicate,
		text(t.CorrelationID), tags, text(t.Initiator), text(t.SourceSystem), text(t.Reason), t.BypassSteps, t.Deadline, t.ParentTaskID).Scan(&id)
	if err != nil {
		return 0, fmt.Errorf("enqueue %s/%s: %w", t.Namespace, t.Name, translate(err))
	}
	return id, nil
}

// TaskSummary is a row of tasker.task_summaries.
type TaskSummary struct {
	TaskID          int64            `json:"task_id"`
	Namespace       string           `json:"namespace"`
	Name            string           `json:"name"`
	Version         string           `json:"version"`
	State           tasker.TaskState `json:"state"`
	ExecutionStatus string           `json:"execution_status"`
	StepsTotal      int              `json:"steps_total"`
	StepsSatisfied  int              `json:"steps_satisfied"`
	Attempts        int              `json:"attempts"`
	CreatedAt       time.Time        `json:"created_at"`
	StartedAt       *time.Time       `json:"started_at"`
	FinishedAt      *time.Time       `json:"finished_at"`
	NextRetryAt     *time.Time       `json:"next_retry_at"`
	CorrelationID   *string          `json:"correlation_id"`
	Error           json.RawMessage  `json:"error"`
}

const summaryColumns = `task_id, namespace, name, version, state, execution_status, steps_total, steps_satisfied, attempts,
	created_at, started_at, finished_at, next_retry_at, correlation_id, error`

// TaskFilter narrows a list of tasks; empty fields match all.
type TaskFilter struct {
	Namespace, Name string
	State           tasker.TaskState
	Before          int64 // only ids below this one: the last id of the page before
	Limit           int
}

// Tasks lists tasks, the newest first.
func (s *Store) Tasks(ctx context.Context, f TaskFilter) ([]TaskSummary, error) {
	rows, err := s.pool.Query(ctx, `SELECT `+summaryColumns+` FROM tasker.task_summaries
		WHERE ($1 = '' OR namespace = $1) AND ($2 = '' OR name = $2) AND ($3 = '' OR state = $3) AND ($4 = 0 OR task_id < $4)
		ORDER BY task_id DESC LIMIT $5`, f.Namespace, f.Name, string(f.State), f.Before, f.Limit)
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[TaskSummary])
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", err)
	}
	return list, nil
}

// Task reads one task. ErrNotFound: there is none with this id.
func (s *Store) Task(ctx context.Context, id int64) (*TaskSummary, error) {
	rows, err := s.pool.Query(ctx, `SELECT `+summaryColumns+` FROM tasker.task_summaries WHERE task_id = $1`, id)
	if err != nil {
		return nil, fmt.Errorf("read task %d: %w", id, err)
	}
	t, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[TaskSummary])
	if err != nil {
		return nil, fmt.Errorf("task %d: %w", id, translate(err))
	}
	return &t, nil
}

// Step is a step as people see it.
type Step struct {
	StepID     int64            `json:"step_id"`
	Name       string           `json:"name"`
	State      tasker.StepState `json:"state"`
	Handler    string           `json:"handler"`
	Attempts   int              `json:"attempts"`
	Losses     int              `json:"losses"`
	Limit      int              `json:"attempt_limit"`
	DependsOn  []string         `json:"depends_on"`
	RetryAt    *time.Time       `json:"retry_at"`
	StartedAt  *time.Time       `json:"started_at"`
	FinishedAt *time.Time       `json:"finished_at"`
	Result     json.RawMessage  `json:"result"`
	Error      json.RawMessage  `json:"error"`
}

// StepsOf reads the steps of a task in the order of its template.
func (s *Store) StepsOf(ctx context.Context, task int64) ([]Step, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT s.step_id, s.name, s.state, coalesce(ts.handler_class, ts.handler), s.attempts, s.losses, ts.attempt_limit,
		       ARRAY(SELECT d.name FROM tasker.template_steps d WHERE d.template_id = t.template_id AND d.position = ANY (ts.depends_on) ORDER BY d.position),
		       s.retry_at, s.started_at, s.finished_at, s.result, s.error
		FROM tasker.steps s JOIN tasker.tasks t USING (task_id)
		JOIN tasker.template_steps ts ON ts.template_id = t.template_id AND ts.position = s.position
		WHERE s.task_id = $1 ORDER BY s.position`, task)
	if err != nil {
		return nil, fmt.Errorf("read steps of task %d: %w", task, err)
	}
	steps, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Step])
	if err != nil {
		return nil, fmt.Errorf("read steps of task %d: %w", task, err)
	}
	return steps, nil
}
