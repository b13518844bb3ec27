package worker_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/taskerhq/tasker/worker"
)

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
				b.exec(`SELECT tasker.start_attempt($1, 1, $2)`, s, process)
			}
			for {
				select {
				case <-over:
					return
				default:
					b.exec(`SELECT count(tasker.heartbeat(s, 1)) FROM unnest($1::bigint[]) s`, mine)
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
