package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/taskerhq/tasker"
)

// Claimed is a task that a worker has just become the owner of.
type Claimed struct {
	TaskID        int64
	TemplateID    int64
	Epoch         int
	Context       json.RawMessage
	CorrelationID string
	TraceParent   string    // W3C traceparent of who enqueued it, where Claimer.Traced asks for it
	Begun         bool      // the first attempts of all steps without dependencies are claimed too; Steps don't show it
	Steps         []StepRow // by position
	KeySeed       *int64    // of the idempotency keys of its steps; nil: made by an earlier version

	dueIn time.Duration // it is not claimed: its run_at has not come
}

// StepRow is a step as a loop needs it. Results are read when a handler needs
// them.
type StepRow struct {
	StepID     int64
	State      tasker.StepState
	Attempts   int
	Losses     int
	Forgiven   int
	RetryIn    time.Duration   // in waiting_for_retry: until it is due; negative when overdue
	Dispatched bool            // an attempt is out at Sidekiq
	Progress   json.RawMessage // what the last heartbeat carried; nil: none
	Failure    json.RawMessage // reported for that attempt, and not yet decided on
	Ticket     int64           // of that attempt; 0: none
}

// Claimer claims tasks for one worker, many in one transaction.
type Claimer struct {
	// Opening lists templates whose tasks' first attempts may be claimed together
	// with the task, and the version of the gates that this is known for. nil:
	// there are none.
	Opening func() (templates []int64, gates int64)
	// TicketKey is what tickets of those first attempts are made of; nil: they have none.
	TicketKey []byte
	// Traced says that it matters in which trace a task was enqueued.
	Traced bool

	store  *Store
	worker int64
	ctx    context.Context
	group  *group[int64, *Claimed]
}

// NewClaimer returns a claimer for the worker.
func (s *Store) NewClaimer(ctx context.Context, worker int64) *Claimer {
	c := &Claimer{store: s, worker: worker, ctx: ctx}
	c.group = newGroup(s.Groups.share(1), s.Groups.WithDefaults().ClaimBatch, c.flush)
	return c
}

// Among says how many workers are alive, this one included.
func (c *Claimer) Among(workers int) { c.group.setLimit(c.store.Groups.share(workers)) }

// Expect says that about n tasks are about to be claimed, so that they are
// claimed together.
func (c *Claimer) Expect(n int) { c.group.expect(n) }

// NotDueError says that a task is not claimed before its run_at.
type NotDueError struct{ In time.Duration }

func (e *NotDueError) Error() string { return fmt.Sprintf("the task is due in %s", e.In) }

// Claim makes the worker the owner of the task and reads its steps. It returns
// nil when there is nothing to do: the task is finished, paused, past its
// deadline, owned by another worker, or does not exist. A task whose run_at has
// not come is a *NotDueError.
func (c *Claimer) Claim(ctx context.Context, task int64) (*Claimed, error) {
	return c.group.do(ctx, task)
}

func (c *Claimer) flush(tasks []int64) []outcome[*Claimed] {
	opening, gates := []int64{}, int64(0)
	if c.Opening != nil {
		opening, gates = c.Opening()
	}
	wanted := slices.Compact(slices.Sorted(slices.Values(tasks))) // the lock order
	claimed, err := c.claim(wanted, opening, gates)
	if err != nil && len(tasks) == 1 && len(opening) > 0 && !errors.Is(err, ErrBusy) && !c.hopeless(err) {
		// What stands in the way of its first attempts is for its loop to deal with.
		claimed, err = c.claim(tasks, []int64{}, 0)
	}
	outcomes := make([]outcome[*Claimed], len(tasks))
	for i, id := range tasks {
		if err != nil && len(tasks) > 1 && !c.hopeless(err) { // one of them is to blame: which?
			outcomes[i] = c.flush([]int64{id})[0]
			continue
		}
		if err != nil {
			outcomes[i].err = fmt.Errorf("claim task %d: %w", id, err)
			continue
		}
		if c := claimed[id]; c != nil && c.dueIn > 0 {
			outcomes[i].err = &NotDueError{c.dueIn}
			continue
		}
		outcomes[i].value = claimed[id]
		delete(claimed, id) // the same task twice in one batch: one gets it
	}
	return outcomes
}

// hopeless says that no claim would succeed now, whichever task it is about.
func (c *Claimer) hopeless(err error) bool {
	var refused *RefusedError
	return errors.Is(err, ErrWorkerDead) || c.ctx.Err() != nil || !errors.As(err, &refused) && temporary(err, 1)
}

// claim claims and reads. Reports that arrive while it claims wait for it at the
// rows of dispatches that it adopts, and then ring for this worker: none falls
// in between. What is read afterwards may know of them already.
func (c *Claimer) claim(tasks, opening []int64, gates int64) (map[int64]*Claimed, error) {
	sql := claimTasks
	if c.Traced {
		sql = claimTraced
	}
	rows, err := c.store.pool.Query(c.ctx, sql, c.worker, tasks, opening, gates, c.TicketKey)
	if err != nil {
		return nil, translate(err)
	}
	claimed := make(map[int64]*Claimed, len(tasks))
	var (
		t        Claimed
		fresh    []int64 // by position; nil: not all of the task's steps are
		begun    []int64 // tasks whose steps have to be read
		epoch    *int
		dueIn    *float64
		document *string // as text: pgx would parse jsonb, for nothing
	)
	columns := []any{&t.TaskID, &t.TemplateID, &epoch, &document, &t.CorrelationID, &fresh, &t.Begun, &dueIn, &t.KeySeed}
	if c.Traced {
		columns = append(columns, &t.TraceParent)
	}
	_, err = pgx.ForEachRow(rows, columns, func() error {
		one := t
		claimed[t.TaskID] = &one
		if epoch == nil {
			one.dueIn = max(seconds64(*dueIn), time.Nanosecond)
			return nil
		}
		one.Epoch, one.Context = *epoch, json.RawMessage(*document)
		if fresh == nil {
			begun = append(begun, t.TaskID)
			return nil
		}
		one.Steps = make([]StepRow, len(fresh))
		for i, id := range fresh {
			one.Steps[i] = StepRow{StepID: id, State: tasker.StepPending}
		}
		return nil
	})
	if err != nil || len(begun) == 0 {
		return claimed, translate(err)
	}
	// They are owned by now: failing here would leave them without a loop.
	_, err = Patiently(c.ctx, func() (struct{}, error) {
		for _, id := range begun {
			claimed[id].Steps = nil
		}
		rows, err := c.store.pool.Query(c.ctx, stepRows, begun)
		if err != nil {
			return struct{}{}, err
		}
		return struct{}{}, scanSteps(rows, func(task int64, step StepRow) { claimed[task].Steps = append(claimed[task].Steps, step) })
	})
	return claimed, translate(err)
}

const (
	claimTasks = `SELECT c.task_id, c.template_id, c.epoch, c.context::text, coalesce(c.correlation_id, ''), c.fresh, c.begun, c.due_in, c.key_seed
		FROM tasker.claim_tasks($1, $2, $3, $4, $5) c`
	claimTraced = `SELECT c.task_id, c.template_id, c.epoch, c.context::text, coalesce(c.correlation_id, ''), c.fresh, c.begun, c.due_in, c.key_seed, o.parent
		FROM tasker.claim_tasks($1, $2, $3, $4, $5) c
		CROSS JOIN LATERAL (SELECT coalesce(left(t.carrier ->> 'traceparent', 100), '') AS parent FROM tasker.tasks t WHERE t.task_id = c.task_id OFFSET 0) o`
)

// seconds64 is a time that Postgres counts in seconds.
func seconds64(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

const stepRows = `SELECT * FROM tasker.steps_of_tasks($1)`

func scanSteps(rows pgx.Rows, add func(task int64, step StepRow)) error {
	var (
		task    int64
		retryIn float64
		ticket  *int64
		s       StepRow
	)
	_, err := pgx.ForEachRow(rows, []any{&task, &s.StepID, &s.State, &s.Attempts, &s.Losses, &s.Forgiven, &retryIn, &s.Dispatched, &s.Progress, &s.Failure, &ticket}, func() error {
		s.RetryIn = seconds64(retryIn)
		if s.Ticket = 0; ticket != nil {
			s.Ticket = *ticket
		}
		add(task, s)
		s.Failure, s.Progress = nil, nil
		return nil
	})
	return err
}

// Held is a task that a worker owns, read again.
type Held struct {
	Epoch   int // a new one when an operator has changed something
	Paused  bool
	Context json.RawMessage
	KeySeed *int64
	Steps   []StepRow
}

// Reread reads a task that the worker owns, after a write of its loop was
// refused or an operator has changed it. ErrStale: the worker does not own it
// any more.
func (s *Store) Reread(ctx context.Context, worker, task int64) (*Held, error) {
	var (
		batch pgx.Batch
		held  Held
	)
	var document string
	batch.Queue(`SELECT epoch, paused_at IS NOT NULL, context::text, key_seed FROM tasker.tasks WHERE task_id = $1 AND owner = $2`, task, worker).
		QueryRow(func(row pgx.Row) error { return row.Scan(&held.Epoch, &held.Paused, &document, &held.KeySeed) })
	batch.Queue(stepRows, []int64{task}).Query(func(rows pgx.Rows) error {
		return scanSteps(rows, func(_ int64, step StepRow) { held.Steps = append(held.Steps, step) })
	})
	err := translate(s.pool.SendBatch(ctx, &batch).Close())
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, ErrStale
	case err != nil:
		return nil, fmt.Errorf("read task %d again: %w", task, err)
	}
	held.Context = json.RawMessage(document)
	return &held, nil
}

// Epochs reads the epochs of the tasks that the worker owns.
func (s *Store) Epochs(ctx context.Context, worker int64) (map[int64]int, error) {
	rows, err := s.pool.Query(ctx, `SELECT task_id, epoch FROM tasker.tasks WHERE owner = $1`, worker)
	if err != nil {
		return nil, fmt.Errorf("read epochs: %w", err)
	}
	epochs := map[int64]int{}
	var (
		task  int64
		epoch int
	)
	if _, err := pgx.ForEachRow(rows, []any{&task, &epoch}, func() error { epochs[task] = epoch; return nil }); err != nil {
		return nil, fmt.Errorf("read epochs: %w", err)
	}
	return epochs, nil
}

// Results reads the results of finished steps; null for one without a result.
func (s *Store) Results(ctx context.Context, steps []int64) (map[int64]json.RawMessage, error) {
	rows, err := s.pool.Query(ctx, `SELECT step_id, coalesce(result::text, 'null') FROM tasker.steps WHERE step_id = ANY ($1)`, steps)
	if err != nil {
		return nil, fmt.Errorf("read results: %w", err)
	}
	results := make(map[int64]json.RawMessage, len(steps))
	var (
		id     int64
		result string
	)
	_, err = pgx.ForEachRow(rows, []any{&id, &result}, func() error {
		results[id] = json.RawMessage(result)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read results: %w", err)
	}
	return results, nil
}

// CheckResult returns a *RefusedError when Postgres can't store the result.
func (s *Store) CheckResult(ctx context.Context, result json.RawMessage) error {
	_, err := s.pool.Exec(ctx, `SELECT $1::text::jsonb`, string(result))
	return translate(err)
}

// SchemaProblem says how a document misses its JSON Schema; empty: it fits. The
// rules are those of docs/templates.md, the same for results of Ruby steps.
func (s *Store) SchemaProblem(ctx context.Context, schema, doc json.RawMessage) (string, error) {
	var problem *string
	err := s.pool.QueryRow(ctx, `SELECT tasker.schema_problem($1::text::jsonb, $2::text::jsonb)`, string(schema), string(doc)).Scan(&problem)
	if err != nil {
		return "", fmt.Errorf("check a document against its schema: %w", translate(err))
	}
	if problem == nil {
		return "", nil
	}
	return *problem, nil
}

// Report is where an attempt that was out at Sidekiq stands.
type Report struct {
	TaskID   int64
	StepID   int64
	State    tasker.StepState
	Attempts int
	Failure  json.RawMessage // reported and not yet decided on
	Ticket   int64           `db:"-"` // of a notification: it is true only if the attempt has this one
}

// Reports reads where the given steps stand.
func (s *Store) Reports(ctx context.Context, steps []int64) ([]Report, error) {
	rows, err := s.pool.Query(ctx, `SELECT * FROM tasker.reports_of($1)`, steps)
	if err != nil {
		return nil, fmt.Errorf("read reports: %w", err)
	}
	reports, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Report])
	if err != nil {
		return nil, fmt.Errorf("read reports: %w", err)
	}
	return reports, nil
}

// Awaited lists the steps whose reports would ring for the worker, and have not.
func (s *Store) Awaited(ctx context.Context, worker int64) (map[int64]bool, error) {
	rows, err := s.pool.Query(ctx, `SELECT step_id FROM tasker.dispatches WHERE awaited_by = $1 AND failure IS NULL`, worker)
	if err != nil {
		return nil, fmt.Errorf("read awaited attempts: %w", err)
	}
	awaited := map[int64]bool{}
	var id int64
	if _, err := pgx.ForEachRow(rows, []any{&id}, func() error { awaited[id] = true; return nil }); err != nil {
		return nil, fmt.Errorf("read awaited attempts: %w", err)
	}
	return awaited, nil
}
