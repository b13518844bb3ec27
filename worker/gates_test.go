package worker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/store"
)

// crowd is a Go handler that knows how many of its attempts run at once.
type crowd struct{ now, peak, runs atomic.Int64 }

func newCrowd(b *bundle, name string) *crowd {
	c := &crowd{}
	b.handlers.Register(name, func(context.Context, *tasker.Attempt) (any, error) {
		n := c.now.Add(1)
		for peak := c.peak.Load(); n > peak && !c.peak.CompareAndSwap(peak, n); peak = c.peak.Load() {
		}
		time.Sleep(2 * time.Millisecond) // the work
		c.now.Add(-1)
		c.runs.Add(1)
		return nil, nil
	})
	return c
}

func (b *bundle) limit(scope, name string, l store.Limit) {
	b.Helper()
	b.must(b.store.SetLimit(b.Context(), store.GateKey{Scope: scope, Name: name}, l, ada))
}

// noPlaceIsLost holds when everything is finished.
func (b *bundle) noPlaceIsLost() {
	b.Helper()
	b.want("0 0", `SELECT (SELECT count(*) FROM tasker.gate_slots) || ' ' || (SELECT count(*) FROM tasker.gate_waiters)`)
}

func TestALimitHoldsAcrossAllWorkersAndIsUsedToTheFull(t *testing.T) {
	b := setup(t)
	c := newCrowd(b, "crowd")
	b.register(`
name: limited
namespace_name: test
step_templates:
  - {name: a, handler: crowd}
  - {name: b, handler: crowd, depends_on_step: a}`)
	b.limit("handler", "crowd", store.Limit{MaxAttempts: new(3)})
	b.start()
	b.start()
	b.enqueueMany("limited", `{}`, 100)
	b.finish()
	if peak, runs := c.peak.Load(), c.runs.Load(); peak != 3 || runs != 200 {
		t.Errorf("%d ran, %d at once; want 200, 3 at once", runs, peak)
	}
	b.noPlaceIsLost()
	b.checkHistory()
}

// A wide task under a limit, and branches of it that are not.
func TestAWideTaskUnderALimitFinishesAndHoldsUpNoOtherBranch(t *testing.T) {
	b := setup(t)
	c := newCrowd(b, "crowd")
	var steps strings.Builder
	for i := range 200 {
		fmt.Fprintf(&steps, "  - {name: w%d, handler: crowd, limit_key: bank}\n", i)
	}
	b.register("name: wide\nnamespace_name: test\nmax_parallel_steps: 10\nstep_templates:\n" + steps.String() + "  - {name: free, handler: tasker.echo}\n")
	b.must(b.store.Pause(t.Context(), store.GateKey{Scope: "key", Name: "bank"}, ada))
	b.start()
	task := b.enqueue("wide", `{}`)
	b.until("the free branch is complete", func() bool { return b.step(task, "free").State == tasker.StepComplete })
	if c.runs.Load() > 0 {
		t.Error("steps behind a paused key have run")
	}
	if n := b.number(`SELECT count(*) FROM tasker.gate_waiters`); n == 0 || n > 20 {
		t.Errorf("%d steps of one task stand in line, with max_parallel_steps 10", n)
	}
	b.limit("key", "bank", store.Limit{MaxAttempts: new(4)})
	b.must(b.store.Resume(t.Context(), store.GateKey{Scope: "key", Name: "bank"}, ada))
	b.finish()
	if peak := c.peak.Load(); peak > 4 || c.runs.Load() != 200 {
		t.Errorf("%d ran, %d at once; want 200, at most 4", c.runs.Load(), peak)
	}
	b.noPlaceIsLost()
}

// With Ruby steps a place is taken from the claim to the report, and whoever
// ends an attempt gives it back.
func TestAPlaceIsGivenBackHoweverAnAttemptEnds(t *testing.T) {
	b := setup(t)
	b.register(`{name: ruby, namespace_name: test, step_templates: [{name: only, handler_class: Echo, timeout_seconds: 0.01, default_retry_limit: 1}]}`)
	b.limit("template", "test/ruby", store.Limit{MaxAttempts: new(1)})
	b.start(parkAfter(20 * time.Millisecond))
	var before int64
	out := func() (task, step int64) {
		b.until("another is out", func() bool {
			return b.pool.QueryRow(t.Context(), `SELECT task_id, step_id FROM tasker.steps WHERE state = 'enqueued' AND step_id <> $1`, before).Scan(&task, &step) == nil
		})
		before = step
		return task, step
	}
	tasks := b.enqueueMany("ruby", `{}`, 7)

	_, step := out() // a report
	b.until("the others stand in line, parked", func() bool {
		return b.number(`SELECT count(*) FROM tasker.gate_waiters`) == 6 && b.number(`SELECT count(*) FROM tasker.tasks WHERE owner IS NOT NULL`) == 0
	})
	b.want("at the limit", `SELECT substr(explanation, position('at the limit' IN explanation), 12) FROM tasker.step_readiness WHERE reason = 'limited' LIMIT 1`)
	b.want("true", `SELECT accepted::text FROM standin.report_results(jsonb_build_array(jsonb_build_object('step_id', $1::bigint, 'attempt', 1, 'outcome', 'success')))`, step)
	task, _ := out() // an operator cancels the task
	b.must(b.store.CancelTask(t.Context(), task, ada))
	_, step = out() // one settles the step
	b.must(b.store.ResolveStep(t.Context(), step, []byte(`1`), ada))
	task, _ = out() // the task's deadline
	b.exec(`UPDATE tasker.tasks SET deadline = now() WHERE task_id = $1`, task)
	_, step = out() // the attempt's timeout
	b.want("started", `SELECT standin.start_attempt($1, 1) ->> 'status'`, step)
	_, step = out()
	// Two are left: the one that is out, and the last in line, which is cancelled.
	last := b.number(`SELECT task_id FROM tasker.gate_waiters`)
	b.must(b.store.CancelTask(t.Context(), int64(last), ada))
	b.want("true", `SELECT accepted::text FROM standin.report_results(jsonb_build_array(jsonb_build_object('step_id', $1::bigint, 'attempt', 1, 'outcome', 'success')))`, step)
	b.finish()
	// The line forgets the cancelled one when it next has room.
	b.must(b.store.SetLimit(t.Context(), store.GateKey{Scope: "template", Name: "test/ruby"}, store.Limit{}, ada))
	b.until("nobody stands in line", func() bool { return b.number(`SELECT count(*) FROM tasker.gate_waiters`) == 0 })
	b.noPlaceIsLost()
	if len(tasks) != 7 {
		t.Error("the test enqueued another number of tasks")
	}
}

// The worker that holds the only place dies.
func TestAPlaceSurvivesNoWorker(t *testing.T) {
	b := setup(t)
	g := newGate(b, "gate")
	b.register(`{name: one, namespace_name: test, step_templates: [{name: only, handler: gate}]}`)
	b.limit("handler", "gate", store.Limit{MaxAttempts: new(1)})
	b.start()
	b.enqueueMany("one", `{}`, 2)
	<-g.running
	b.must(b.store.StopWorker(t.Context(), int64(b.number(`SELECT worker_id FROM tasker.workers WHERE state = 'alive'`))))
	close(g.release)
	b.finish()
	b.noPlaceIsLost()
	b.want("2", `SELECT count(*)::text FROM tasker.tasks WHERE state = 'complete'`)
}

func TestARateIsKept(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	b.limit("template", "test/one", store.Limit{PerSecond: new(25.0), Burst: new(2.0)})
	b.start()
	b.start()
	b.enqueueMany("one", `{}`, 15)
	b.finish()
	// After the burst, one every 40 ms by the database's clock. What lies between
	// the decision and the event is the same for all, or nearly so.
	b.want("true", `SELECT (max(created_at) - min(created_at) > interval '500 milliseconds')::text FROM tasker.events WHERE name = 'step.handle'`)
	b.want("true", `SELECT bool_and(n <= 2 + 25 * 0.2 + 1)::text FROM (
		SELECT count(*) OVER (ORDER BY created_at RANGE BETWEEN CURRENT ROW AND interval '200 milliseconds' FOLLOWING) AS n
		FROM tasker.events WHERE name = 'step.handle') windows`)
	b.noPlaceIsLost()
}

// A pause holds from the moment that it is committed, also for workers that do
// not know of it yet.
func TestAPauseHoldsFromItsCommit(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	b.register(`
name: mixed
namespace_name: test
step_templates:
  - {name: ruby, handler_class: Echo, queue: payments}
  - {name: go, handler: tasker.echo}`)
	b.start()
	for round := range 5 {
		payments, template := store.GateKey{Scope: "queue", Name: "payments"}, store.GateKey{Scope: "template", Name: "test/one"}
		b.must(b.store.Pause(t.Context(), payments, ada))
		b.must(b.store.Pause(t.Context(), template, ada))
		mixed, one := b.enqueue("mixed", `{}`), b.enqueue("one", `{}`)
		b.until("the branch that is not paused is complete", func() bool { return b.step(mixed, "go").State == tasker.StepComplete })
		b.until("both stand in line", func() bool { return b.number(`SELECT count(*) FROM tasker.gate_waiters`) == 2 })
		if n := len(b.queued("payments")); n != round {
			t.Fatalf("%d jobs are in the paused queue, want %d", n, round)
		}
		b.want("2", `SELECT count(*) FILTER (WHERE reason = 'gate_paused')::text FROM tasker.step_readiness WHERE task_id IN ($1, $2) AND reason <> 'finished'`, mixed, one)
		b.must(b.store.Resume(t.Context(), template, ada))
		b.until("the other template goes on", func() bool { return b.step(one, "only").State == tasker.StepComplete })
		b.must(b.store.Resume(t.Context(), payments, ada))
		b.until("and the queue", func() bool { return len(b.queued("payments")) == round+1 })
	}
	b.want("5 5 ada", `SELECT count(*) FILTER (WHERE name = 'gate.paused' AND data ->> 'scope' = 'queue') || ' '
		|| count(*) FILTER (WHERE name = 'gate.resumed' AND data ->> 'scope' = 'template') || ' ' || min(data ->> 'by') FROM tasker.events WHERE task_id IS NULL`)
}

// The more urgent overtake in the line, and those that wait get on all the same.
func TestTheLineKnowsPrioritiesAndAges(t *testing.T) {
	b := setup(t)
	b.register(`{name: ruby, namespace_name: test, step_templates: [{name: only, handler_class: Echo}]}`)
	b.must(b.store.Pause(t.Context(), store.GateKey{Scope: "handler", Name: "Echo"}, ada))
	b.start()
	add := func(priority int) int64 {
		id, err := b.store.Enqueue(t.Context(), &store.NewTask{Namespace: "test", Name: "ruby", Context: []byte(`{}`), Priority: priority})
		b.must(err)
		b.until("it stands in line", func() bool { return b.number(`SELECT count(*) FROM tasker.gate_waiters WHERE task_id = $1`, id) == 1 })
		return id
	}
	low, old, normal, urgent := add(4), add(4), add(2), add(1)
	b.exec(`UPDATE tasker.gate_waiters SET since = since - interval '4 minutes', rank = rank - interval '4 minutes' WHERE task_id = $1`, old)
	b.must(b.store.SetTaskPriority(t.Context(), normal, 1, ada)) // and it came before the other urgent one
	b.limit("handler", "Echo", store.Limit{MaxAttempts: new(1)})
	b.must(b.store.Resume(t.Context(), store.GateKey{Scope: "handler", Name: "Echo"}, ada))
	for _, want := range []int64{old, normal, urgent, low} {
		step := b.dispatched(want, 1) // the others are not out: there is one place
		b.exec(`SELECT standin.report_results(jsonb_build_array(jsonb_build_object('step_id', $1::bigint, 'attempt', 1, 'outcome', 'success')))`, step)
	}
	b.finish()
	b.want(fmt.Sprint([]int64{old, normal, urgent, low}), `SELECT '[' || string_agg(task_id::text, ' ' ORDER BY event_id) || ']' FROM tasker.events WHERE name = 'step.execution_requested'`)
}

func TestJobsThatWaitMoveUp(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	for _, p := range []int{1, 2, 3, 4, 4} {
		_, err := b.store.Enqueue(t.Context(), &store.NewTask{Namespace: "test", Name: "one", Context: []byte(`{}`), Priority: p})
		b.must(err)
	}
	priorities := `SELECT string_agg(priority::text, ' ' ORDER BY id) FROM tasker.river_job`
	for _, c := range []struct{ age, want string }{
		{"50 s", "1 2 3 4 4"}, {"61 s", "1 2 3 3 3"}, {"121 s", "1 2 2 2 2"}, {"181 s", "1 1 1 1 1"},
	} {
		b.exec(`UPDATE tasker.river_job SET scheduled_at = clock_timestamp() - $1::text::interval`, c.age)
		b.must(b.store.AgeJobs(t.Context(), time.Minute))
		b.want(c.want, priorities)
	}

	// Of a flood only so many come before what is urgent.
	b.exec(`DELETE FROM tasker.river_job`)
	b.enqueueMany("one", `{}`, 500)
	b.exec(`UPDATE tasker.river_job SET priority = 2, scheduled_at = clock_timestamp() - interval '1 hour'`)
	for _, want := range []string{"200", "220", "240"} {
		b.must(b.store.AgeJobs(t.Context(), time.Minute))
		b.want(want, `SELECT count(*)::text FROM tasker.river_job WHERE priority = 1`)
	}
	b.exec(`DELETE FROM tasker.river_job WHERE priority = 1`)
	b.must(b.store.AgeJobs(t.Context(), time.Minute))
	b.want("200", `SELECT count(*)::text FROM tasker.river_job WHERE priority = 1`)
}

func TestLimitsThatMakeNoSenseAreRefused(t *testing.T) {
	b := setup(t)
	b.register(`{name: ruby, namespace_name: test, step_templates: [{name: only, handler_class: Echo, queue: payments, limit_key: bank}]}`)
	for sql, want := range map[string]string{
		`tasker.set_limit('handler', 'Ecoh', 1)`:                    "no registered template has the handler Ecoh; there are: Echo",
		`tasker.pause('queue', 'default')`:                          "no registered template has the queue default; there are: payments",
		`tasker.pause('key', 'banc')`:                               "no registered template has the key banc; there are: bank",
		`tasker.pause('template', 'ruby')`:                          "no registered template has the template ruby; there are: test/ruby",
		`tasker.pause('host', 'a')`:                                 "there are limits and pauses of a template, handler, queue or key, not of a host",
		`tasker.set_limit('handler', 'Echo', 0)`:                    "a limit on attempts is a number from 1 to 1000000, not 0",
		`tasker.set_limit('handler', 'Echo', per_second => 0)`:      "a rate is a number of attempts per second from 0.000001 to 1000000, not 0",
		`tasker.set_limit('handler', 'Echo', per_second => 'NaN')`:  "a rate is a number of attempts per second from 0.000001 to 1000000, not NaN",
		`tasker.set_limit('handler', 'Echo', burst => 3)`:           "a burst is a number of attempts from 1 to 1000000, and goes with a rate",
		`tasker.resume('handler', 'Echo')`:                          "handler Echo is not paused",
		`tasker.set_limit('handler', 'Echo', per_second => 1e-400)`: "out of range",
	} {
		if _, err := b.pool.Exec(t.Context(), "SELECT "+sql); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %s", sql, err, want)
		}
	}
	b.want("0", `SELECT count(*)::text FROM tasker.gates`)
}

// An attempt that nobody takes from its queue in time fails, and by the template
// may be tried again.
func TestAnAttemptThatLiesInItsQueueForTooLongFails(t *testing.T) {
	b := setup(t)
	b.register(`{name: ruby, namespace_name: test, step_templates: [{name: only, handler_class: Echo, schedule_to_start_seconds: 0.1, default_retry_limit: 2, retry: {base_seconds: 0.01}}]}`)
	b.start()
	task := b.enqueue("ruby", `{}`)
	first := b.dispatched(task, 2)
	b.want("refused", `SELECT standin.start_attempt($1, 1) ->> 'status'`, first)
	if f := b.failure(task, "only"); f.Code != tasker.CodeStartTimeout || !strings.Contains(f.Message, "queue default") {
		t.Errorf("%s: %s", f.Code, f.Message)
	}
	// One that is started in time has no such limit any more.
	b.want("started", `SELECT standin.start_attempt($1, 2) ->> 'status'`, first)
	b.want("null", `SELECT coalesce(start_by::text, 'null') FROM tasker.dispatches WHERE step_id = $1`, first)
}

// A gate is being changed, and by the time that the claim looks whose steps have
// to wait for that, none has: the change is committed. It is tried again like any
// claim that came too early.
func TestAGateThatHasJustBeenChangedIsNoReasonToGiveUp(t *testing.T) {
	b := setup(t)
	b.register(`{name: limited, namespace_name: test, step_templates: [{name: only, handler: tasker.echo, limit_key: bank}]}`)
	b.limit("key", "bank", store.Limit{MaxAttempts: new(1)})
	b.open(`SELECT FROM tasker.gates FOR UPDATE`)
	// Of no step: as when none has to wait.
	_, err := b.pool.Exec(t.Context(), `SELECT set_config('lock_timeout', '10ms', false), tasker.pass_gates('{}', (SELECT array_agg(gate_id) FROM tasker.gates))`)
	var refused *pgconn.PgError
	if !errors.As(err, &refused) || refused.Code != "55P03" || refused.Message != "somebody changes a gate" {
		t.Errorf("got %v, want a lock that is not available", err)
	}
}
