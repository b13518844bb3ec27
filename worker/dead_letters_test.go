package worker_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/store"
)

// Thresholds of tests: none at all, and none but for what runs.
var (
	atOnce      = store.Staleness{}
	atOnceIdle  = store.Staleness{Running: 24 * time.Hour}
	afterAnHour = store.Staleness{Pending: time.Hour, InProgress: time.Hour, Waiting: time.Hour, Running: time.Hour}
)

const failing = `
name: fails
namespace_name: test
step_templates:
  - {name: charge, handler: tasker.fail, handler_config: {permanent: true}}
  - {name: ship, handler: tasker.echo, depends_on_step: charge}`

func (b *bundle) findStale(after store.Staleness) int {
	b.Helper()
	found, err := b.store.FindStale(b.Context(), after)
	b.must(err)
	return found
}

// listed waits until the task has an open entry: a worker that has just begun
// may be looking too, and then nobody else does.
func (b *bundle) listed(task int64, after store.Staleness) store.DeadLetter {
	b.Helper()
	var open []store.DeadLetter
	b.until("the task is listed", func() bool {
		b.findStale(after)
		var err error
		open, err = b.store.DeadLetters(b.Context(), store.DeadLetterFilter{TaskID: task, Limit: 10})
		b.must(err)
		return len(open) == 1
	})
	return open[0]
}

// closed waits until the entry of the task that is the last by now is resolved,
// and compares how.
func (b *bundle) closed(task int64, want string) {
	b.Helper()
	last, err := b.store.DeadLetters(b.Context(), store.DeadLetterFilter{TaskID: task, All: true, Limit: 1})
	b.must(err)
	var got string
	b.until("its entry is closed", func() bool {
		b.findStale(afterAnHour)
		got = b.text(`SELECT concat_ws(' ', coalesce(resolution, 'open'), resolved_by, note) FROM tasker.dead_letters WHERE dead_letter_id = $1`, last[0].ID)
		return got != "open"
	})
	if got != want {
		b.Errorf("task %d: its entry was closed with %q, want %q", task, got, want)
	}
}

func (b *bundle) registerMore(name, steps string) {
	b.Helper()
	b.register("name: " + name + "\nnamespace_name: test\nstep_templates: [" + steps + "]")
}

func (b *bundle) untilState(task int64, name string, state tasker.StepState) {
	b.Helper()
	b.until(name+" is "+string(state), func() bool { return b.step(task, name).State == state })
}

// age moves all that has happened to a task into the past.
func (b *bundle) age(task int64, by string) {
	b.Helper()
	b.exec(`UPDATE tasker.events SET created_at = created_at - $2::interval WHERE task_id = $1`, task, by)
	b.exec(`UPDATE tasker.steps SET started_at = started_at - $2::interval, finished_at = finished_at - $2::interval WHERE task_id = $1`, task, by)
	b.exec(`UPDATE tasker.tasks SET created_at = created_at - $2::interval, started_at = started_at - $2::interval WHERE task_id = $1`, task, by)
}

func TestTasksThatStandStillOrHaveFailedAreListedWithTheReason(t *testing.T) {
	b := setup(t)
	g := newGate(b, "gate")
	defer close(g.release)
	b.register(oneGoStep)
	b.register(failing)
	b.registerMore("unhandled", "{name: a, handler: nobody.has.it}, {name: b, handler: nobody.has.it}")
	b.registerMore("ruby", "{name: charge, handler_class: Echo, queue: billing}")
	b.registerMore("runs", "{name: long, handler: gate}")
	b.registerMore("dies", "{name: long, handler: nobody.has.it}")

	pending := b.enqueue("one", `{}`)
	if d := b.listed(pending, atOnce); d.Reason != store.StalePending || d.Detail != "only: needs the Go handler tasker.echo, and no worker is alive" {
		t.Errorf("a task that nobody took: %s, %s", d.Reason, d.Detail)
	}
	b.start()
	b.finish()

	unhandled, ruby, runs, failed := b.enqueue("unhandled", `{}`), b.enqueue("ruby", `{}`), b.enqueue("runs", `{}`), b.enqueue("fails", `{}`)
	<-g.running
	b.untilState(ruby, "charge", tasker.StepEnqueued)
	b.until("the others are where they stay", func() bool {
		return b.number(`SELECT count(*) FROM tasker.tasks WHERE task_id = $1 AND state = 'in_progress' OR task_id = $2 AND state = 'error'`, unhandled, failed) == 2
	})
	// An attempt whose worker is gone, and that nobody took back.
	dies := b.enqueue("dies", `{}`)
	// Its job, too, must have seen that: it comes after the notification, and would
	// have an attempt without a worker taken back.
	b.until("it is taken and given up", func() bool {
		return b.number(`SELECT count(*) FROM tasker.tasks t WHERE t.task_id = $1 AND t.state = 'in_progress' AND t.owner IS NULL AND NOT EXISTS (
			SELECT FROM tasker.river_job j WHERE j.args @> jsonb_build_object('task_id', t.task_id) AND (j.state = 'running' OR j.state = 'available' AND j.scheduled_at <= now()))`, dies) == 1
	})
	b.exec(`DELETE FROM tasker.river_job WHERE args @> jsonb_build_object('task_id', $1::bigint)`, dies)
	b.exec(`UPDATE tasker.steps SET state = 'in_progress', attempts = 1, started_at = now() WHERE task_id = $1`, dies)

	for _, c := range []struct {
		task   int64
		after  store.Staleness
		reason store.DeadLetterReason
		detail string
	}{
		{unhandled, atOnceIdle, store.StaleInProgress, "a: needs the Go handler nobody.has.it, and none of the workers alive (1) has it (and 1 more likewise)"},
		{ruby, atOnceIdle, store.StaleWaiting, "charge: attempt 1 of 3 is in Sidekiq's queue billing, and no Sidekiq process with tasker has given a sign of life"},
		{dies, atOnceIdle, store.StaleInProgress, "long: attempt 1 of 3 runs for"},
		{failed, atOnceIdle, store.DeadLetterFailed, "charge: failed for good with attempt 1: failed as told"},
		{runs, atOnce, store.StaleRunning, "long: attempt 1 of 3 runs for"},
	} {
		d := b.listed(c.task, c.after)
		if d.Reason != c.reason || !strings.Contains(d.Detail, c.detail) {
			t.Errorf("task %d:\n got: %s, %s\nwant: %s, … %s …", c.task, d.Reason, d.Detail, c.reason, c.detail)
		}
		event := tasker.EventTaskStale
		if c.reason == store.DeadLetterFailed {
			event = tasker.EventTaskDeadLetter
		}
		b.want(d.Detail, `SELECT data ->> 'detail' FROM tasker.events WHERE task_id = $1 AND name = $2`, c.task, string(event))
	}
	if n := b.findStale(atOnce); n != 0 {
		t.Errorf("%d tasks were found again", n)
	}
	b.want("6", `SELECT count(*)::text FROM tasker.events WHERE name IN ('task.stale', 'task.dead_lettered')`)
}

// Slow is not stale.
func TestATaskThatIsOnlySlowIsNotListed(t *testing.T) {
	b := setup(t)
	g := newGate(b, "gate")
	defer close(g.release)
	b.register(oneGoStep)
	b.registerMore("runs", "{name: long, handler: gate}")
	b.registerMore("timed", "{name: long, handler: gate, timeout_seconds: 3600}")
	b.registerMore("retries", "{name: flaky, handler: tasker.fail, retry: {base_seconds: 3000, cap_seconds: 3000}}")
	b.registerMore("ruby", "{name: charge, handler_class: Echo}")
	b.registerMore("queued", "{name: charge, handler_class: Echo}")
	b.registerMore("paused", "{name: charge, handler: nobody.has.it}")
	b.start()
	runs, timed, retries, ruby := b.enqueue("runs", `{}`), b.enqueue("timed", `{}`), b.enqueue("retries", `{}`), b.enqueue("ruby", `{}`)
	queued, paused := b.enqueue("queued", `{}`), b.enqueue("paused", `{}`)
	b.must(b.store.PauseTask(t.Context(), paused, ada))
	b.exec(`INSERT INTO tasker.tasks (namespace, name, run_at) VALUES ('test', 'one', now() + interval '1 hour')`)
	<-g.running
	<-g.running
	b.untilState(retries, "flaky", tasker.StepWaitingForRetry)
	b.exec(`UPDATE tasker.dispatches SET start_by = now() + interval '1 hour' WHERE step_id = $1`, b.dispatchedStep(queued, "charge"))
	process := b.number(`SELECT tasker.register_process('a test')`)
	b.want("started", `SELECT standin.start_attempt($1, 1, $2) ->> 'status'`, b.dispatchedStep(ruby, "charge"), process)
	b.exec(`SELECT tasker.process_beat($1)`, process)
	b.findStale(atOnceIdle)
	b.want("", `SELECT coalesce(string_agg(format('%s %s: %s', task_id, reason, detail), E'\n'), '') FROM tasker.dead_letters`)

	// Without a threshold, those that run without a clock are listed.
	b.listed(runs, atOnce)
	b.exec(`SELECT tasker.process_beat($1)`, process)
	b.listed(ruby, atOnce)
	b.want("0", `SELECT count(*)::text FROM tasker.dead_letters WHERE task_id NOT IN ($1, $2) OR reason <> 'stale_running'`, runs, ruby)
	b.want("stale_running true, stale_waiting true", `SELECT string_agg(reason || ' ' || watched, ', ' ORDER BY task_id) FROM tasker.quiet_tasks WHERE task_id IN ($1, $2)`, timed, queued)
}

// What counts is when something last happened, not how old the task is; and
// being looked at in vain is nothing that happens.
func TestATaskIsStaleOnlyWhenNothingHasHappenedForLong(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	task := b.enqueue("one", `{}`)
	b.age(task, "2 hours")
	b.must(b.store.PauseTask(t.Context(), task, ada))
	b.must(b.store.ResumeTask(t.Context(), task, ada))
	if n := b.findStale(afterAnHour); n != 0 {
		t.Error("a task was listed that was resumed a moment ago")
	}
	b.exec(`UPDATE tasker.events SET created_at = created_at - interval '2 hours'`)
	b.exec(`INSERT INTO tasker.events (task_id, name, data) SELECT $1, 'workflow.task_reenqueue_delayed', '{"delay_seconds": 3}' FROM generate_series(1, 150)`, task)
	b.must(b.store.SetTaskPriority(t.Context(), task, 1, ada))
	if n := b.findStale(afterAnHour); n != 1 {
		t.Errorf("%d tasks were listed, want the one that nothing has happened to for two hours", n)
	}
	if d := b.listed(task, afterAnHour); d.Age < 7000 || d.Age > 7500 {
		t.Errorf("nothing has happened for two hours, listed are %v s", d.Age)
	}
	b.exec(`INSERT INTO tasker.tasks (namespace, name, run_at) VALUES ('test', 'one', now() - interval '10 minutes')`)
	b.exec(`UPDATE tasker.tasks SET created_at = created_at - interval '1 day'`)
	b.exec(`UPDATE tasker.events SET created_at = created_at - interval '1 day'`)
	if n := b.findStale(afterAnHour); n != 0 {
		t.Error("a task was listed whose run_at came ten minutes ago")
	}
}

func TestADeadLetterIsClosedWhenItsTaskMovesOn(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	ids := b.enqueueMany("one", `{}`, 5)
	completes, goesOn, fails, deleted, paused := ids[0], ids[1], ids[2], ids[3], ids[4]
	if n := b.findStale(atOnce); n != 5 {
		t.Fatalf("%d tasks were listed, want 5", n)
	}
	b.must(b.store.PauseTask(t.Context(), paused, ada))
	b.exec(`DELETE FROM tasker.tasks WHERE task_id = $1`, deleted)
	b.exec(`UPDATE tasker.tasks SET state = 'in_progress', started_at = clock_timestamp() WHERE task_id IN ($1, $2)`, completes, goesOn)
	b.exec(`UPDATE tasker.tasks SET state = 'complete', finished_at = clock_timestamp() WHERE task_id = $1`, completes)
	b.exec(`UPDATE tasker.tasks SET state = 'error', finished_at = clock_timestamp() WHERE task_id = $1`, fails)
	b.closed(completes, "moved_on the task is complete")
	b.closed(goesOn, "moved_on the task went on by itself")
	b.closed(deleted, "moved_on the task was deleted")
	b.closed(paused, "moved_on ada a test")
	// It stood still, and then failed: another matter.
	if d := b.listed(fails, atOnce); d.Reason != store.DeadLetterFailed {
		t.Errorf("a task that was stale and has failed is listed as %s", d.Reason)
	}
	b.want("stale_pending moved_on the task is error, failed", `SELECT string_agg(concat_ws(' ', reason, resolution, note), ', ' ORDER BY dead_letter_id)
		FROM tasker.dead_letters WHERE task_id = $1`, fails)
}

func TestWhatAnOperatorDidIsRecorded(t *testing.T) {
	b := setup(t)
	b.register(failing)
	b.registerMore("later", "{name: only, handler: nobody.has.it}")
	b.start()
	ctx := t.Context()
	fail := func() int64 {
		t.Helper()
		task := b.enqueue("fails", `{}`)
		b.finish()
		b.listed(task, afterAnHour)
		return task
	}

	retried := fail()
	b.must(b.store.RetryTask(ctx, retried, nil, ada))
	b.finish() // it fails again: another failure, another entry
	b.closed(retried, "retried ada a test")
	b.listed(retried, afterAnHour)
	b.must(b.store.RetryStep(ctx, b.step(retried, "charge").StepID, nil, store.Operator{Name: "bob", Reason: "once more"}))
	b.finish()
	b.closed(retried, "retried bob once more")
	b.listed(retried, afterAnHour)

	b.must(b.store.CancelTask(ctx, retried, store.Operator{}))
	b.closed(retried, "cancelled")
	resolved := fail()
	b.must(b.store.ResolveTask(ctx, resolved, ada))
	b.closed(resolved, "resolved ada a test")
	skipped := fail()
	b.must(b.store.SkipStep(ctx, b.step(skipped, "charge").StepID, ada))
	b.finish()
	b.closed(skipped, "resolved ada a test")

	acknowledged := fail()
	b.must(b.store.AcknowledgeDeadLetter(ctx, acknowledged, ada))
	b.want("ada a test", `SELECT concat_ws(' ', data ->> 'by', data ->> 'reason') FROM tasker.events WHERE name = $1`, string(tasker.EventTaskAcknowledge))
	if n := b.findStale(atOnce); n != 0 {
		t.Errorf("%d tasks were listed, though they were acknowledged", n)
	}
	b.want("acknowledged ada a test", `SELECT string_agg(concat_ws(' ', resolution, resolved_by, note), ', ') FROM tasker.dead_letters WHERE task_id = $1`, acknowledged)
	b.must(b.store.RetryTask(ctx, acknowledged, nil, ada))
	b.finish()
	b.listed(acknowledged, afterAnHour) // it failed anew

	var refused *store.RefusedError
	if err := b.store.AcknowledgeDeadLetter(ctx, resolved, ada); !errors.As(err, &refused) || !strings.Contains(refused.Message, "has no open dead letter: there is nothing to acknowledge") {
		t.Errorf("a task that is not listed: got %v", err)
	}
	if err := b.store.AcknowledgeDeadLetter(ctx, 999, ada); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a task that does not exist: got %v", err)
	}
}

// Whoever holds a task, or acknowledges it, in a transaction that stays open,
// holds up nobody who looks.
func TestOpenTransactionsHoldUpNobodyWhoLooksForStaleTasks(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	held, acknowledged, other := b.enqueue("one", `{}`), b.enqueue("one", `{}`), b.enqueue("one", `{}`)
	b.exec(`UPDATE tasker.tasks SET run_at = now() + interval '1 day' WHERE task_id = $1`, other)
	tx, err := b.pool.Begin(t.Context())
	b.must(err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }() // it may be committed
	_, err = tx.Exec(t.Context(), `SELECT tasker.lock_task($1)`, held)
	b.must(err)
	if n := b.findStale(atOnce); n != 2 {
		t.Errorf("%d tasks were listed, want 2", n)
	}
	_, err = tx.Exec(t.Context(), `SELECT tasker.acknowledge_dead_letter($1, 'ada', 'a test')`, acknowledged)
	b.must(err)
	b.exec(`UPDATE tasker.tasks SET paused_at = now() WHERE task_id = $1`, acknowledged)
	b.exec(`UPDATE tasker.tasks SET run_at = NULL WHERE task_id = $1`, other)
	if n := b.findStale(atOnce); n != 1 {
		t.Errorf("%d tasks were listed, want 1", n)
	}
	b.must(tx.Commit(t.Context()))
	b.findStale(atOnce)
	b.want("open,acknowledged,open", `SELECT string_agg(coalesce(resolution, 'open'), ',' ORDER BY task_id) FROM tasker.dead_letters`)
}

func TestAWorkerListsWhatHasFailed(t *testing.T) {
	b := setup(t)
	b.register(failing)
	stop := b.start()
	b.enqueue("fails", `{}`)
	b.finish()
	stop()
	b.start() // it looks when it starts, and then every minute
	b.until("the task is listed", func() bool { return b.number(`SELECT count(*) FROM tasker.dead_letters WHERE reason = 'failed'`) == 1 })
}
