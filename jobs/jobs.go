// Package jobs is all that tasker has to do with River: the job that runs a
// task, the client that works it, and River's settings.
//
// A River job makes a worker look at a task; it carries no truth. Jobs may come
// late, twice or after their task is finished: claiming the task decides. There
// is one job per task when it is enqueued and one for each time that it comes
// back after having been given up; the number of steps does not matter.
//
// River's own retries repair orchestration (the database was away), never a
// step: a step's retries are the finalizer's.
package jobs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"

	"github.com/taskerhq/tasker/crash"
	"github.com/taskerhq/tasker/orchestrator"
)

// TaskExecutionArgs are the arguments of the job that runs a task. SQL inserts
// the same: tasker.expand_tasks and tasker.schedule_runs.
type TaskExecutionArgs struct {
	TaskID int64 `json:"task_id"`
}

// Kind is the job's kind in river_job.
func (TaskExecutionArgs) Kind() string { return "task_execution" }

// Runner runs tasks.
type Runner interface {
	Run(ctx context.Context, task, job int64) error
}

// Known are the jobs that a client has: those that it works, and those that it has
// worked and whose end River has not written yet. The zero value is ready.
type Known struct {
	mu   sync.Mutex
	jobs map[int64]time.Time // when its work ended; zero: it is worked
}

// unwritten is how long a job stays known whose work has ended. River writes that
// within a moment, or else tries for minutes; a job that has to come back should not
// wait for that.
const unwritten = 5 * time.Second

// IDs lists them.
func (k *Known) IDs() []int64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	maps.DeleteFunc(k.jobs, func(_ int64, ended time.Time) bool { return !ended.IsZero() && time.Since(ended) > unwritten })
	return slices.AppendSeq([]int64{}, maps.Keys(k.jobs)) // not nil, which would be NULL
}

func (k *Known) begin(id int64) { k.set(id, time.Time{}) }

func (k *Known) end(id int64) { k.set(id, time.Now()) }

func (k *Known) set(id int64, ended time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.jobs == nil {
		k.jobs = map[int64]time.Time{}
	}
	k.jobs[id] = ended
}

// late says whether the work of one of the jobs ended so long ago that another worker
// may have it by now: well below any lease.
func (k *Known) late(ids []int64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.ContainsFunc(ids, func(id int64) bool {
		ended, there := k.jobs[id]
		return !there || !ended.IsZero() && time.Since(ended) > 500*time.Millisecond
	})
}

// written forgets jobs whose end is written, but for those that have come again.
func (k *Known) written(ids []int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, id := range ids {
		if ended, there := k.jobs[id]; there && !ended.IsZero() {
			delete(k.jobs, id)
		}
	}
}

type taskWorker struct {
	river.WorkerDefaults[TaskExecutionArgs]
	runner Runner
	tuning Tuning
	known  *Known
	now    func() time.Time
}

func (w *taskWorker) Work(ctx context.Context, job *river.Job[TaskExecutionArgs]) error {
	w.known.begin(job.ID)
	defer w.known.end(job.ID)
	crash.At(crash.JobFetched)
	err := w.runner.Run(ctx, job.Args.TaskID, job.ID)
	crash.At(crash.JobServed)
	if errors.Is(err, orchestrator.ErrAbandoned) {
		return river.JobSnooze(w.tuning.UnservedAfter) // another worker's turn, or ours a little later: no failure of the job
	}
	var early *orchestrator.NotDueError
	if errors.As(err, &early) {
		return river.JobSnooze(early.In) // the clock of this machine is ahead, or the job was made available too soon
	}
	return err
}

// Timeout is none: a loop runs as long as its steps do, and each step has its
// own timeout.
func (w *taskWorker) Timeout(*river.Job[TaskExecutionArgs]) time.Duration { return -1 }

// NextRetry is soon: what failed is the orchestration, mostly for want of a
// database.
func (w *taskWorker) NextRetry(*river.Job[TaskExecutionArgs]) time.Time {
	return w.now().Add(w.tuning.RetryAfter)
}

// Client is a River client that works tasks.
type Client = river.Client[pgx.Tx]

// Config is what a client needs.
type Config struct {
	Schema   string // that River's tables are in
	ID       string // enters river_job.attempted_by: finds the jobs that a dead worker left running
	MaxTasks int    // tasks that this worker runs at once
	Runner   Runner
	Known    *Known // kept current
	Logger   *slog.Logger
	PollOnly bool // don't listen: look for jobs every Poll
	// Fetched is told how many jobs have been fetched together, before Runner gets the
	// first of them; nil: nobody is.
	Fetched func(n int)

	// Now is the database's time, by which jobs become due. A job that is put off is
	// given a date, and by the clock of a machine that is wrong it would come that much
	// too late.
	Now func() time.Time
	Tuning
}

// Tuning is River's part of the settings. The zero value of a field means its
// default.
type Tuning struct {
	// FetchCooldown is the least time between two fetches. Fetches happen when a
	// notification comes or a slot gets free; River's default of 100 ms would be
	// most of a short task's time.
	FetchCooldown time.Duration
	// Poll finds what no notification told of. Jobs that come due are rung for by
	// the workers' heartbeat.
	Poll time.Duration
	// Retention is how long River's rows of finished jobs are kept. The history
	// is in tasker.events; these rows are only in the way.
	Retention     time.Duration
	RetryAfter    time.Duration // when a job is tried again whose orchestration failed
	UnservedAfter time.Duration // when a job comes back whose task could not be served
}

// WithDefaults has the default in place of each zero.
func (t Tuning) WithDefaults() Tuning {
	t.FetchCooldown = cmp.Or(t.FetchCooldown, time.Millisecond)
	t.Poll = cmp.Or(t.Poll, time.Second)
	t.Retention = cmp.Or(t.Retention, 10*time.Minute)
	t.RetryAfter = cmp.Or(t.RetryAfter, 5*time.Second)
	t.UnservedAfter = cmp.Or(t.UnservedAfter, time.Second)
	return t
}

// NewClient returns a client over the pool.
func NewClient(pool *pgxpool.Pool, c Config) (*Client, error) {
	tuning := c.Tuning.WithDefaults()
	workers := river.NewWorkers()
	if err := river.AddWorkerSafely(workers, &taskWorker{runner: c.Runner, tuning: tuning, known: c.Known, now: c.Now}); err != nil {
		return nil, fmt.Errorf("set up River: %w", err)
	}
	client, err := river.NewClient(newDriver(pool, c.Schema, c.ID, c.Known, c.Fetched), &river.Config{
		ID:      c.ID,
		Schema:  c.Schema,
		Workers: workers,
		Logger:  c.Logger,
		Queues:  map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: c.MaxTasks}},

		FetchCooldown:               tuning.FetchCooldown,
		FetchPollInterval:           tuning.Poll,
		PollOnly:                    c.PollOnly,
		JobTimeout:                  -1,
		CompletedJobRetentionPeriod: tuning.Retention,
		CancelledJobRetentionPeriod: tuning.Retention,
		ReindexerSchedule:           river.NeverSchedule(),
		ErrorHandler:                &errorHandler{c.Logger},
		// There is no other place to say what time it is.
		Test: river.TestConfig{Time: clock{c.Now}},
	})
	if err != nil {
		return nil, fmt.Errorf("set up River: %w", err)
	}
	return client, nil
}

// clock is the database's, for River.
type clock struct{ now func() time.Time }

func (c clock) Now() time.Time { return c.now() }

// NowOrNil is for statements, which ask the database itself.
func (clock) NowOrNil() *time.Time { return nil }

type errorHandler struct{ log *slog.Logger }

func (h *errorHandler) HandleError(_ context.Context, job *rivertype.JobRow, err error) *river.ErrorHandlerResult {
	h.log.Error("task could not be run; River tries again", "job_id", job.ID, "args", string(job.EncodedArgs), "error", err)
	return nil
}

func (h *errorHandler) HandlePanic(_ context.Context, job *rivertype.JobRow, panicked any, trace string) *river.ErrorHandlerResult {
	h.log.Error("the loop of a task panicked; River tries again", "job_id", job.ID, "args", string(job.EncodedArgs), "panic", panicked, "trace", trace)
	return nil
}
