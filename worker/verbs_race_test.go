package worker_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker"
)

// open begins a transaction of an app or an operator, runs a statement, and
// leaves it open.
func (b *bundle) open(sql string, args ...any) pgx.Tx {
	b.Helper()
	conn, err := pgx.Connect(b.Context(), b.url)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = conn.Close(context.Background()) }) // the test is over
	tx, err := conn.Begin(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	if _, err := tx.Exec(b.Context(), sql, args...); err != nil {
		b.Fatal(err)
	}
	return tx
}

// An operator's verb in a transaction that stays open holds up its own task and
// no other.
func TestAnOpenVerbHoldsUpNobodyElse(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	b.register(oneRubyStep)
	b.start(parkAfter(20 * time.Millisecond))
	var held []pgx.Tx
	for range 4 { // more than there are writers
		task := b.enqueue("ruby", `{}`)
		b.dispatched(task, 1)
		held = append(held, b.open(`SELECT tasker.set_task_priority($1, 1::smallint)`, task))
	}
	for range 5 {
		b.enqueueMany("one", `{}`, 5)
		b.until("the other tasks are complete", func() bool {
			return b.number(`SELECT count(*) FROM tasker.tasks WHERE name = 'one' AND state <> 'complete'`) == 0
		})
	}
	for _, tx := range held {
		b.must(tx.Commit(t.Context()))
	}
	b.exec(`SELECT standin.report_results((SELECT jsonb_agg(jsonb_build_object('step_id', step_id, 'attempt', attempt, 'outcome', 'success')) FROM tasker.dispatches))`)
	b.finish()
	b.want("29", `SELECT count(*)::text FROM tasker.tasks WHERE state = 'complete'`)
}

// A paused task whose report stays open must not keep its worker busy.
func TestARefusedParkIsTriedCalmly(t *testing.T) {
	b := setup(t)
	b.register(oneRubyStep)
	stop := b.start()
	task := b.enqueue("ruby", `{}`)
	step := b.dispatched(task, 1)
	report := b.open(`SELECT standin.report_results(jsonb_build_array(jsonb_build_object('step_id', $1::bigint, 'attempt', 1, 'outcome', 'success')))`, step)
	b.must(b.store.PauseTask(t.Context(), task, ada))
	b.until("the task is given up although its report is open", func() bool {
		return b.number(`SELECT count(*) FROM tasker.tasks WHERE owner IS NULL`) == 1
	})
	stop()
	if n := b.number(`SELECT epoch FROM tasker.tasks`); n > 10 {
		t.Errorf("the task has changed hands %d times", n)
	}
	b.must(report.Commit(t.Context()))
	b.start()
	b.must(b.store.ResumeTask(t.Context(), task, ada))
	b.finish()
	b.want("complete 1", `SELECT concat_ws(' ', t.state, s.attempts) FROM tasker.tasks t JOIN tasker.steps s USING (task_id)`)
}

// The loop could not even give its task up. The worker notices that it owns a
// task without a loop.
func TestATaskWithoutALoopIsGivenToTheNext(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	b.start()
	task := b.enqueue("one", `{}`)
	b.finish()
	// As after such an error: owned by the living worker, and no job.
	b.exec(`INSERT INTO tasker.tasks (namespace, name, run_at) VALUES ('test', 'one', now() + interval '1 hour')`)
	b.exec(`UPDATE tasker.tasks SET state = 'in_progress', epoch = 3, owner = (SELECT worker_id FROM tasker.workers) WHERE task_id > $1`, task)
	b.exec(`DELETE FROM tasker.river_job WHERE (args ->> 'task_id')::bigint > $1`, task)
	b.finish()
	b.want("2", `SELECT count(*)::text FROM tasker.tasks WHERE state = 'complete'`)
}

func TestARetryForgivesLossesToo(t *testing.T) {
	b := setup(t)
	b.register(oneRubyStep)
	b.start()
	task := b.enqueue("ruby", `{}`)
	for attempt := 1; attempt <= 6; attempt++ {
		step := b.dispatched(task, attempt)
		if ok, reason := b.report(`{"step_id": %d, "attempt": %d, "outcome": "lost"}`, step, attempt); !ok {
			t.Fatal(reason)
		}
	}
	b.finish()
	if f := b.failure(task, "only"); f.Code != tasker.CodeAttemptLost {
		t.Errorf("after six losses: %+v", f)
	}
	b.must(b.store.RetryTask(t.Context(), task, nil, ada))
	step := b.dispatched(task, 7)
	if ok, reason := b.report(`{"step_id": %d, "attempt": 7, "outcome": "lost"}`, step); !ok {
		t.Fatal(reason)
	}
	step = b.dispatched(task, 8)
	if ok, reason := b.report(`{"step_id": %d, "attempt": 8, "outcome": "success"}`, step); !ok {
		t.Fatal(reason)
	}
	b.finish()
	b.want("complete 8 1 6", `SELECT concat_ws(' ', state, attempts, losses, forgiven) FROM tasker.steps`)
}

func TestTheSweepDoesNotHurryWhatIsForLater(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	b.exec(`INSERT INTO tasker.tasks (namespace, name, run_at) VALUES ('test', 'one', now() + interval '1 hour')`)
	b.exec(`DELETE FROM tasker.river_job`)
	if found, err := b.store.Sweep(t.Context()); err != nil || found != 1 {
		t.Fatalf("the sweep found %d, %v", found, err)
	}
	b.want("scheduled t", `SELECT concat_ws(' ', state, scheduled_at > now() + interval '59 minutes') FROM tasker.river_job`)
}

func TestAPauseEndsWithTheTask(t *testing.T) {
	b := setup(t)
	g := newGate(b, "gate")
	b.register(`
name: ends
namespace_name: test
step_templates: [{name: only, handler: gate, timeout_seconds: 0.5, default_retry_limit: 1}]`)
	b.start()
	task := b.enqueue("ends", `{}`)
	<-g.running
	b.must(b.store.PauseTask(t.Context(), task, ada))
	b.finish()
	b.want("error t", `SELECT concat_ws(' ', state, paused_at IS NULL) FROM tasker.tasks`)
	b.must(b.store.RetryTask(t.Context(), task, nil, ada))
	<-g.running
	close(g.release)
	b.finish()
	b.want("complete", `SELECT state FROM tasker.tasks`)
}
