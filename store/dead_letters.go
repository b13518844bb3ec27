package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/taskerhq/tasker"
)

// Staleness is how long nothing may happen to a task, by the condition that it
// is in, before it is listed as a dead letter.
type Staleness struct {
	Pending    time.Duration // no worker has taken it
	InProgress time.Duration // taken, and no attempt is out
	Waiting    time.Duration // an attempt lies in Sidekiq's queue
	Running    time.Duration // an attempt runs, without a timeout or a heartbeat that would end it
	Failed     time.Duration // in error; 0: listed at once
}

// staleBatch is how many dead letters a transaction lists or closes: after a mass
// failure what is done stays done, should there be no time for the rest.
const staleBatch = 200

// FindStale lists tasks that stand still or have failed, and closes the entries
// of those that have moved. It returns how many it found; none when another
// worker looks at the same time.
func (s *Store) FindStale(ctx context.Context, after Staleness) (total int, err error) {
	for {
		var found, closed int
		err := s.pool.QueryRow(ctx, `SELECT found_tasks, closed_entries FROM tasker.find_stale_tasks(
				pending => $1, in_progress => $2, waiting => $3, running => $4, failed => $5, most => $6)`,
			after.Pending, after.InProgress, after.Waiting, after.Running, after.Failed, staleBatch).Scan(&found, &closed)
		if err != nil {
			return total, fmt.Errorf("find stale tasks: %w", err)
		}
		total += found
		if found < staleBatch && closed < staleBatch {
			return total, nil
		}
	}
}

// DeadLetterReason is why a task is a dead letter.
type DeadLetterReason string

// The reasons; the fields of Staleness say what they mean.
const (
	StalePending     DeadLetterReason = "stale_pending"
	StaleInProgress  DeadLetterReason = "stale_in_progress"
	StaleWaiting     DeadLetterReason = "stale_waiting"
	StaleRunning     DeadLetterReason = "stale_running"
	DeadLetterFailed DeadLetterReason = "failed"
)

// DeadLetter is a row of tasker.dead_letter_list: a task that stood still or
// failed, and what was done about it.
type DeadLetter struct {
	ID        int64             `json:"dead_letter_id"`
	TaskID    int64             `json:"task_id"`
	Namespace *string           `json:"namespace"` // null, as the next three, once the task is deleted
	Name      *string           `json:"name"`
	Version   *string           `json:"version"`
	State     *tasker.TaskState `json:"state"`
	Reason    DeadLetterReason  `json:"reason"`
	Detail    string            `json:"detail"`
	Since     time.Time         `json:"since"`
	FoundAt   time.Time         `json:"found_at"`
	Age       float64           `json:"age_seconds"` // from since until now, or until it was resolved

	ResolvedAt *time.Time `json:"resolved_at"`
	Resolution *string    `json:"resolution"` // acknowledged, retried, cancelled, resolved, moved_on
	ResolvedBy *string    `json:"resolved_by"`
	Note       *string    `json:"note"`
}

const deadLetterColumns = `dead_letter_id, task_id, namespace, name, version, state, reason, detail, since, found_at,
	extract(epoch FROM age)::float8, resolved_at, resolution, resolved_by, note`

// DeadLetterFilter narrows a list of dead letters; empty fields match all.
type DeadLetterFilter struct {
	TaskID int64
	Reason DeadLetterReason
	All    bool  // those that are resolved too
	Before int64 // only ids below this one: the last id of the page before
	Limit  int
}

// DeadLetters lists dead letters, the newest first.
func (s *Store) DeadLetters(ctx context.Context, f DeadLetterFilter) ([]DeadLetter, error) {
	rows, err := s.pool.Query(ctx, `SELECT `+deadLetterColumns+` FROM tasker.dead_letter_list
		WHERE ($1 OR resolved_at IS NULL) AND ($2 = '' OR reason = $2) AND ($3 = 0 OR task_id = $3) AND ($4 = 0 OR dead_letter_id < $4)
		ORDER BY dead_letter_id DESC LIMIT $5`, f.All, string(f.Reason), f.TaskID, f.Before, f.Limit)
	if err != nil {
		return nil, fmt.Errorf("list dead letters: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[DeadLetter])
	if err != nil {
		return nil, fmt.Errorf("list dead letters: %w", err)
	}
	return list, nil
}

// AcknowledgeDeadLetter takes a task off the list without doing anything to it.
// ErrNotFound: there is no such task; a *RefusedError: it is not listed.
func (s *Store) AcknowledgeDeadLetter(ctx context.Context, task int64, by Operator) error {
	return s.verb(ctx, "acknowledge dead letter of task", task, `SELECT tasker.acknowledge_dead_letter($1, $2, $3)`, task, text(by.Name), text(by.Reason))
}
