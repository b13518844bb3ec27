package store

import (
	"context"
	"encoding/json"
	"fmt"
)

// Operator is who does something to a task by hand, and why. Both are recorded
// in the event.
type Operator struct {
	Name   string
	Reason string
}

// The verbs. Each returns ErrNotFound when there is no such task or step, and a
// *RefusedError when it does not fit the state that it is in.

// CancelTask stops a task for good.
func (s *Store) CancelTask(ctx context.Context, task int64, by Operator) error {
	return s.verb(ctx, "cancel task", task, `SELECT tasker.cancel_task($1, $2, $3)`, task, text(by.Name), text(by.Reason))
}

// RetryTask runs the failed steps of a task again; with a context, with that one.
func (s *Store) RetryTask(ctx context.Context, task int64, newContext json.RawMessage, by Operator) error {
	return s.verb(ctx, "retry task", task, `SELECT tasker.retry_task($1, $2, $3, $4)`, task, text(by.Name), text(by.Reason), document(newContext))
}

// ResolveTask declares a failed task done.
func (s *Store) ResolveTask(ctx context.Context, task int64, by Operator) error {
	return s.verb(ctx, "resolve task", task, `SELECT tasker.resolve_task($1, $2, $3)`, task, text(by.Name), text(by.Reason))
}

// PauseTask keeps a task from starting attempts; ResumeTask lets it again.
func (s *Store) PauseTask(ctx context.Context, task int64, by Operator) error {
	return s.verb(ctx, "pause task", task, `SELECT tasker.pause_task($1, $2, $3)`, task, text(by.Name), text(by.Reason))
}

// ResumeTask ends a pause.
func (s *Store) ResumeTask(ctx context.Context, task int64, by Operator) error {
	return s.verb(ctx, "resume task", task, `SELECT tasker.resume_task($1, $2, $3)`, task, text(by.Name), text(by.Reason))
}

// RunTaskNow starts a task that was enqueued for later, and attempts that wait
// for their retry.
func (s *Store) RunTaskNow(ctx context.Context, task int64, by Operator) error {
	return s.verb(ctx, "run task", task, `SELECT tasker.run_task_now($1, $2, $3)`, task, text(by.Name), text(by.Reason))
}

// SetTaskPriority changes the priority of an open task: 1, which goes first, to 4.
func (s *Store) SetTaskPriority(ctx context.Context, task int64, priority int, by Operator) error {
	return s.verb(ctx, "change priority of task", task, `SELECT tasker.set_task_priority($1, $2, $3, $4)`, task, priority, text(by.Name), text(by.Reason))
}

// RetryStep runs a failed step again, or one that waits for its retry at once;
// with a context, its task goes on with that one.
func (s *Store) RetryStep(ctx context.Context, step int64, newContext json.RawMessage, by Operator) error {
	return s.verb(ctx, "retry step", step, `SELECT tasker.retry_step($1, $2, $3, $4)`, step, text(by.Name), text(by.Reason), document(newContext))
}

// SkipStep settles a step without a result; steps behind it may start.
func (s *Store) SkipStep(ctx context.Context, step int64, by Operator) error {
	return s.verb(ctx, "skip step", step, `SELECT tasker.skip_step($1, $2, $3)`, step, text(by.Name), text(by.Reason))
}

// ResolveStep settles a step with the given result; steps behind it may start.
func (s *Store) ResolveStep(ctx context.Context, step int64, result json.RawMessage, by Operator) error {
	return s.verb(ctx, "resolve step", step, `SELECT tasker.resolve_step($1, $2, $3, $4)`, step, document(result), text(by.Name), text(by.Reason))
}

func (s *Store) verb(ctx context.Context, what string, id int64, sql string, args ...any) error {
	if _, err := s.pool.Exec(ctx, sql, args...); err != nil {
		return fmt.Errorf("%s %d: %w", what, id, translate(err))
	}
	return nil
}
