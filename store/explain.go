package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/taskerhq/tasker"
)

// Readiness is a row of tasker.step_readiness: whether a step may start, and if
// not, why.
type Readiness struct {
	StepID       int64            `json:"step_id"`
	Name         string           `json:"name"`
	State        tasker.StepState `json:"state"`
	Ready        bool             `json:"ready"`
	Reason       Reason           `json:"reason"`
	Explanation  string           `json:"explanation"`
	Dependencies int              `json:"dependencies_total"`
	Satisfied    int              `json:"dependencies_satisfied"`
	WaitingOn    []string         `json:"waiting_on"`
	Attempts     int              `json:"attempts"`
	Used         int              `json:"attempts_used"`
	Limit        int              `json:"attempt_limit"`
	RetryAt      *time.Time       `json:"retry_at"`
	RetryIn      *float64         `json:"seconds_until_retry"`
	GateScope    *string          `json:"gate_scope"` // of gate_paused and limited: what holds it
	GateName     *string          `json:"gate_name"`
}

// Reason is a word of tasker.step_readiness.
type Reason string

// The reasons, in the order in which the view looks for them.
const (
	ReasonFinished          Reason = "finished"           // satisfied or cancelled
	ReasonAttemptsExhausted Reason = "attempts_exhausted" // in error: the last attempt failed
	ReasonFailed            Reason = "failed"             // in error for another reason
	ReasonTaskCancelled     Reason = "task_cancelled"
	ReasonRunning           Reason = "running"
	ReasonEnqueued          Reason = "enqueued"
	ReasonNoProcessAlive    Reason = "no_process_alive" // enqueued, and no Sidekiq process with a fresh heartbeat
	ReasonTaskFinished      Reason = "task_finished"
	ReasonBlocked           Reason = "blocked"   // behind a step that failed or was cancelled
	ReasonPaused            Reason = "paused"    // by an operator
	ReasonScheduled         Reason = "scheduled" // run_at has not come
	ReasonDependencies      Reason = "dependencies"
	ReasonFailFast          Reason = "fail_fast" // another step has failed, and nothing new starts
	ReasonBackoff           Reason = "backoff"
	ReasonAtLimit           Reason = "at_limit"         // max_parallel_steps attempts are out
	ReasonGatePaused        Reason = "gate_paused"      // its template, handler, queue or limit_key is paused
	ReasonLimited           Reason = "limited"          // it stands in line at a limit
	ReasonNoHandlerAlive    Reason = "no_handler_alive" // no worker alive has the Go handler
	ReasonNoWorkerAlive     Reason = "no_worker_alive"
	ReasonReady             Reason = "ready"
)

// Explanation is a task with what its steps wait for.
type Explanation struct {
	Task     *TaskSummary
	RunAt    *time.Time
	PausedAt *time.Time
	Owned    bool // a worker's loop runs it
	Steps    []Readiness

	DeadLetter *DeadLetter // nil: it is not listed as one at the moment
}

// Explain reads why a task is where it is, all of it at one moment.
// ErrNotFound: there is none with this id.
func (s *Store) Explain(ctx context.Context, id int64) (*Explanation, error) {
	var e Explanation
	err := pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `SELECT `+summaryColumns+` FROM tasker.task_summaries WHERE task_id = $1`, id)
		if err != nil {
			return err
		}
		task, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[TaskSummary])
		if err != nil {
			return err
		}
		e.Task = &task
		if err := tx.QueryRow(ctx, `SELECT run_at, paused_at, owner IS NOT NULL FROM tasker.tasks WHERE task_id = $1`, id).
			Scan(&e.RunAt, &e.PausedAt, &e.Owned); err != nil {
			return err
		}
		rows, err = tx.Query(ctx, `SELECT step_id, name, state, ready, reason, explanation, dependencies_total, dependencies_satisfied,
			waiting_on, attempts, attempts_used, attempt_limit, retry_at, seconds_until_retry, gate_scope, gate_name
			FROM tasker.step_readiness WHERE task_id = $1 ORDER BY position`, id)
		if err != nil {
			return err
		}
		if e.Steps, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Readiness]); err != nil {
			return err
		}
		rows, err = tx.Query(ctx, `SELECT `+deadLetterColumns+` FROM tasker.dead_letter_list WHERE task_id = $1 AND resolved_at IS NULL`, id)
		if err != nil {
			return err
		}
		listed, err := pgx.CollectRows(rows, pgx.RowToAddrOfStructByPos[DeadLetter])
		if len(listed) > 0 {
			e.DeadLetter = listed[0] // a task has one open entry at most
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("task %d: %w", id, translate(err))
	}
	return &e, nil
}
