package worker_test

import (
	"context"
	"testing"
	"time"

	"github.com/taskerhq/tasker/worker"
)

// The River jobs are put off by an hour in the transaction that inserts, so
// River brings none of the tasks; each worker starts its share.
func TestTasksThatComeAloneAreStartedByNotification(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	stop := b.start()
	b.start()
	alone := func() {
		t.Helper()
		tx, err := b.pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }() // it may be committed
		for _, sql := range []string{
			`INSERT INTO tasker.tasks (namespace, name) VALUES ('test', 'one')`,
			`UPDATE tasker.river_job SET state = 'scheduled', scheduled_at = now() + interval '1 hour' WHERE state = 'available'`,
		} {
			if _, err := tx.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	pairs := func(beyond int) int {
		alone()
		alone()
		return b.number(`SELECT count(*) FROM tasker.tasks t JOIN tasker.tasks n ON n.task_id = t.task_id + 1
			WHERE t.task_id > $1 AND t.state = 'complete' AND n.state = 'complete'`, beyond)
	}
	// Until each knows of the other, a task may be nobody's share, or that of both.
	b.until("every one is started", func() bool { return pairs(0) >= 20 })

	// The jobs come, and have nothing left to ask for.
	b.exec(`UPDATE tasker.river_job SET state = 'available', scheduled_at = now()`)
	b.exec(`SELECT tasker.notify_river()`)
	b.until("the jobs are ticked off", func() bool {
		return b.number(`SELECT count(*) FROM tasker.river_job WHERE state <> 'completed'`) == 0
	})
	b.finish()
	b.want("1", `SELECT max(epoch) FROM tasker.tasks`)

	// The share of one that has left is the other's before long.
	stop()
	before := b.number(`SELECT max(task_id) FROM tasker.tasks`)
	b.until("the other starts two in a row", func() bool { return pairs(before) > 0 })
}

// A loop that gives its task up for a while relies on a River job that is there
// already. That of a task which came alone may not have been fetched by then: it
// must not be ticked off when it comes, for the visit that it asked for is over.
func TestATaskThatCameAloneAndIsGivenUpKeepsItsJob(t *testing.T) {
	b := setup(t)
	b.register(`
name: retried
namespace_name: test
step_templates: [{name: only, handler: tasker.fail, handler_config: {times: 1}, retry: {base_seconds: 0.5, jitter: 0}}]`)
	// River fetches nothing as long as something is held.
	b.exec(`CREATE TABLE public.held (x int);
		CREATE FUNCTION public.hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			RETURN CASE WHEN EXISTS (SELECT FROM public.held) THEN NULL ELSE NEW END;
		END $$;
		CREATE TRIGGER hold BEFORE UPDATE ON tasker.river_job FOR EACH ROW WHEN (NEW.state = 'running') EXECUTE FUNCTION public.hold();
		INSERT INTO public.held VALUES (1)`)
	b.start(parkAfter(10*time.Millisecond), func(c *worker.Config) { c.SweepEvery = time.Hour }) // nothing else would bring it back
	// Until the worker knows its share, nobody starts it.
	b.until("a task is given up that waits for its retry", func() bool {
		b.enqueue("retried", `{}`)
		return b.number(`SELECT count(*) FROM tasker.tasks JOIN tasker.steps s USING (task_id) WHERE owner IS NULL AND s.state = 'waiting_for_retry'`) > 0
	})
	b.exec(`DELETE FROM public.held`)
	b.exec(`SELECT tasker.notify_river()`)
	b.finish()
	b.healthy()
}
