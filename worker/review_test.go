package worker_test

import (
	"context"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/worker"
)

func gateKey(scope, name string) store.GateKey { return store.GateKey{Scope: scope, Name: name} }

// A claim that was under way when the deadline of its task passed starts nothing.
func TestADeadlineThatPassesDuringAClaimLeavesNoAttemptBehind(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	task := b.enqueue("one", `{}`)
	tx, err := b.pool.Begin(t.Context())
	b.must(err)
	defer tx.Rollback(context.WithoutCancel(t.Context())) //nolint:errcheck // ends what is left
	_, err = tx.Exec(t.Context(), `SELECT FROM tasker.steps WHERE task_id = $1 FOR NO KEY UPDATE`, task)
	b.must(err)
	stop := b.start(func(c *worker.Config) { c.ClockEvery = time.Hour })
	claims := `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%write_batch%' AND wait_event_type = 'Lock'`
	b.until("its claim waits for the step", func() bool { return b.number(claims) > 0 })
	b.exec(`UPDATE tasker.tasks SET deadline = now() - interval '1 second' WHERE task_id = $1`, task)
	expired := make(chan int, 1)
	go func() { expired <- b.number(`SELECT tasker.expire_tasks()`) }()
	select {
	case n := <-expired:
		expired <- n
	case <-time.After(20 * time.Millisecond):
	}
	b.must(tx.Rollback(t.Context()))
	if <-expired == 0 {
		b.exec(`SELECT tasker.expire_tasks()`)
	}
	b.until("the task has ended", func() bool { return b.text(`SELECT state FROM tasker.tasks WHERE task_id = $1`, task) != "in_progress" })
	stop()
	b.want("0", `SELECT count(*)::text FROM tasker.steps WHERE task_id = $1 AND state IN ('enqueued', 'in_progress')`, task)
}

// One gate with settings at the end of what numbers can be must not stop the
// line at all gates.
func TestGatesAtTheEndOfTheNumbers(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	for _, l := range []store.Limit{
		{PerSecond: new(1.0), Burst: new(math.Inf(1))}, {PerSecond: new(1.0), Burst: new(1e300)}, {PerSecond: new(5e-324)}, {PerSecond: new(math.Inf(1))},
	} {
		if err := b.store.SetLimit(t.Context(), gateKey("template", "test/one"), l, ada); err == nil {
			t.Errorf("%v is taken", l)
		}
	}
	b.limit("template", "test/one", store.Limit{PerSecond: new(1e-6), Burst: new(1e6), MaxAttempts: new(1000000)})
	b.limit("handler", "tasker.echo", store.Limit{PerSecond: new(1e6)})
	b.start()
	b.enqueueMany("one", `{}`, 3)
	b.finish()
	b.limit("template", "test/one", store.Limit{PerSecond: new(1e-6)})
	b.enqueueMany("one", `{}`, 3)
	b.until("two stand in line", func() bool { return b.number(`SELECT count(*) FROM tasker.gate_waiters`) == 2 })
	b.want("1", `SELECT tasker.admit_waiters()::text`)
}

// Where all places are taken, tokens are no reason to look again at once.
func TestTheGatekeeperRestsWhileAllPlacesAreTaken(t *testing.T) {
	b := setup(t)
	g := newGate(b, "gate")
	b.register(`{name: one, namespace_name: test, step_templates: [{name: only, handler: gate}]}`)
	b.limit("handler", "gate", store.Limit{MaxAttempts: new(1), PerSecond: new(1000.0)})
	b.start()
	b.enqueueMany("one", `{}`, 3)
	<-g.running
	b.until("two stand in line", func() bool { return b.number(`SELECT count(*) FROM tasker.gate_waiters`) == 2 })
	time.Sleep(10 * time.Millisecond) // the bucket is full again
	b.want("1", `SELECT tasker.admit_waiters()::text`)
	close(g.release)
	b.finish()
	b.noPlaceIsLost()
}

// An operator's open transaction that changes one gate holds up nobody at others,
// and no other operator.
func TestAGateThatIsBeingChangedHoldsUpNoOther(t *testing.T) {
	b := setup(t)
	b.register(`{name: first, namespace_name: test, step_templates: [{name: only, handler: tasker.echo}]}`)
	b.register(`{name: second, namespace_name: test, step_templates: [{name: only, handler: tasker.echo}]}`)
	b.register(`{name: third, namespace_name: test, step_templates: [{name: only, handler: tasker.echo}]}`)
	for _, name := range []string{"test/first", "test/second"} {
		b.must(b.store.Pause(t.Context(), gateKey("template", name), ada))
	}
	b.start()
	b.enqueueMany("first", `{}`, 150)
	b.enqueue("second", `{}`)
	b.until("all stand in line", func() bool { return b.number(`SELECT count(*) FROM tasker.gate_waiters`) == 151 })

	tx, err := b.pool.Begin(t.Context())
	b.must(err)
	defer tx.Rollback(context.WithoutCancel(t.Context())) //nolint:errcheck // ends what is left
	_, err = tx.Exec(t.Context(), `SELECT tasker.set_limit('template', 'test/first', 1)`)
	b.must(err)
	b.must(b.store.Resume(t.Context(), gateKey("template", "test/second"), ada))
	b.until("the other line moves", func() bool {
		return b.number(`SELECT count(*) FROM tasker.tasks WHERE name = 'second' AND state = 'complete'`) == 1
	})
	// Claims that the open transaction stands in the way of keep no others back.
	b.enqueueMany("first", `{}`, 150)
	began := time.Now()
	for range 5 {
		third := b.enqueue("third", `{}`)
		b.until("a task without a gate is complete", func() bool { return b.step(third, "only").State == tasker.StepComplete })
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("five tasks without a gate took %s while somebody changed a gate", took)
	}
	b.must(tx.Rollback(t.Context()))
	b.must(b.store.Resume(t.Context(), gateKey("template", "test/first"), ada))
	b.finish()
	b.noPlaceIsLost()
}

// A step that is admitted and can't start, because its task's other steps take
// all of max_parallel_steps, does not keep the only place from others for ever.
func TestAStepThatCannotStartLeavesItsPlaceToOthers(t *testing.T) {
	b := setup(t)
	g := newGate(b, "gate")
	b.register(`
name: narrow
namespace_name: test
max_parallel_steps: 1
step_templates:
  - {name: gated, handler: tasker.echo, limit_key: bank}
  - {name: long, handler: gate}`)
	b.register(`{name: other, namespace_name: test, step_templates: [{name: only, handler: tasker.echo, limit_key: bank}]}`)
	b.must(b.store.Pause(t.Context(), gateKey("key", "bank"), ada))
	b.limit("key", "bank", store.Limit{MaxAttempts: new(1)})
	b.start()
	b.enqueue("narrow", `{}`)
	<-g.running
	others := b.enqueueMany("other", `{}`, 5)
	b.until("all stand in line", func() bool { return b.number(`SELECT count(*) FROM tasker.gate_waiters`) == 6 })
	b.must(b.store.Resume(t.Context(), gateKey("key", "bank"), ada))
	b.until("the others are complete", func() bool {
		// The time of an admission that nobody uses is over sooner here.
		b.exec(`UPDATE tasker.gate_waiters w SET admitted_until = clock_timestamp() - interval '1 second'
			FROM tasker.tasks t WHERE t.task_id = w.task_id AND t.name = 'narrow' AND w.admitted_until IS NOT NULL`)
		return b.number(`SELECT count(*) FROM tasker.tasks WHERE task_id = ANY ($1) AND state = 'complete'`, others) == 5
	})
	close(g.release)
	b.finish()
	b.noPlaceIsLost()
}

// The line does not stop at a step whose task was deleted while it stood there.
func TestALineForgetsDeletedTasks(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	b.must(b.store.Pause(t.Context(), gateKey("template", "test/one"), ada))
	b.limit("template", "test/one", store.Limit{MaxAttempts: new(1)})
	b.start()
	gone := b.enqueue("one", `{}`)
	b.until("it stands in line", func() bool { return b.number(`SELECT count(*) FROM tasker.gate_waiters`) == 1 })
	b.must(b.store.CancelTask(t.Context(), gone, ada))
	b.exec(`DELETE FROM tasker.steps WHERE task_id = $1`, gone)
	b.exec(`DELETE FROM tasker.tasks WHERE task_id = $1`, gone)
	b.enqueue("one", `{}`)
	b.must(b.store.Resume(t.Context(), gateKey("template", "test/one"), ada))
	b.finish()
	b.noPlaceIsLost()
}

// An attempt that gives a sign of life while overdue ones are being collected
// may have timed out; it is not lost, as its process lives.
func TestAHeartbeatInTheNickOfTimeLosesNoAttempt(t *testing.T) {
	b := setup(t)
	b.register(`{name: ruby, namespace_name: test, step_templates: [{name: only, handler_class: Echo, heartbeat_seconds: 0.003, default_retry_limit: 1}]}`)
	b.start(func(c *worker.Config) { c.ClockEvery = time.Hour })
	tasks := b.enqueueMany("ruby", `{}`, 40)
	process := b.number(`SELECT tasker.register_process('test')`)
	var beating sync.WaitGroup
	over := make(chan struct{})
	for i := range 4 {
		var mine []int64
		for _, task := range tasks[i*10 : i*10+10] {
			mine = append(mine, b.dispatched(task, 1))
		}
		beating.Go(func() {
			for _, s := range mine {
				b.exec(`SELECT standin.start_attempt($1, 1, $2)`, s, process)
			}
			for {
				select {
				case <-over:
					return
				default:
					b.exec(`SELECT count(standin.heartbeat(s, 1)) FROM unnest($1::bigint[]) s`, mine)
				}
			}
		})
	}
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		b.exec(`SELECT tasker.reap_attempts(interval '1 hour')`)
	}
	close(over)
	beating.Wait()
	b.want("0", `SELECT count(*)::text FROM tasker.steps WHERE losses > 0 OR error ->> 'code' = 'attempt_lost'`)
}

// A row that somebody's transaction holds keeps the progress of no other back.
func TestProgressOfOthersIsKeptWhileOneRowIsHeld(t *testing.T) {
	b := setup(t)
	g := newGate(b, "gate")
	b.register(`{name: one, namespace_name: test, step_templates: [{name: only, handler: gate}]}`)
	b.start()
	tasks := b.enqueueMany("one", `{}`, 2)
	<-g.running
	<-g.running
	held, free := b.step(tasks[0], "only").StepID, b.step(tasks[1], "only").StepID
	tx, err := b.pool.Begin(t.Context())
	b.must(err)
	_, err = tx.Exec(t.Context(), `SELECT FROM tasker.steps WHERE step_id = $1 FOR UPDATE`, held)
	b.must(err)
	b.exec(`SELECT tasker.record_progress((SELECT worker_id FROM tasker.workers), $1, '{1,1}', '{1,2}')`, []int64{held, free})
	b.must(tx.Rollback(t.Context()))
	b.want("none 2", `SELECT string_agg(coalesce(progress::text, 'none'), ' ' ORDER BY task_id) FROM tasker.steps`)
	close(g.release)
	b.finish()
}
