package worker_test

import (
	"context"
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
