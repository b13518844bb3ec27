package worker_test

import (
	"context"
	"testing"
	"time"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/handler"
	"github.com/taskerhq/tasker/worker"
)

// rarely has River look for itself less often than a test waits.
func rarely(c *worker.Config) { c.River.Poll = 10 * time.Minute }

// with gives a worker the built-in handlers and one more.
func with(name string) func(*worker.Config) {
	return func(c *worker.Config) {
		c.Handlers = handler.NewRegistry()
		c.Handlers.Register(name, func(context.Context, *tasker.Attempt) (any, error) { return "done", nil })
	}
}

const twoWorkers = `
name: two_workers
namespace_name: test
step_templates:
  - {name: here, handler: tasker.echo}
  - {name: there, handler: test.rare, depends_on_step: here}
  - {name: later, handler: test.later, depends_on_step: there}`

// Tasks that wait for a handler cost less and less; who brings it wakes them.
func TestAWorkerWakesTheTasksThatWaitForItsHandlers(t *testing.T) {
	b := setup(t)
	b.register(twoWorkers)
	b.register(`
name: retries
namespace_name: test
step_templates:
  - {name: asks, handler: tasker.fail, handler_config: {times: 1, retry_after: 3600}, retry: {retry_after_cap_seconds: 7200}}
  - {name: there, handler: test.rare, depends_on_step: asks}`)
	b.start(func(c *worker.Config) { c.HandledNowhere, c.HandledNowhereMost = time.Hour, time.Hour })
	waits := b.enqueue("two_workers", `{}`)
	retries := b.enqueue("retries", `{}`) // for something else: its retry
	b.until("both are given up", func() bool {
		return b.number(`SELECT count(*) FROM tasker.river_job WHERE state = 'scheduled'`) == 2
	})

	b.start(with("test.rare"), rarely, func(c *worker.Config) { c.HandledNowhere, c.HandledNowhereMost = time.Hour, time.Hour })
	b.until("the step has run", func() bool {
		return b.number(`SELECT count(*) FROM tasker.steps WHERE task_id = $1 AND name = 'there' AND state = 'complete'`, waits) == 1
	})
	b.want("1", `SELECT count(*)::text FROM tasker.river_job WHERE state = 'scheduled' AND (args ->> 'task_id')::bigint = $1`, retries)

	b.until("it waits for the next handler", func() bool {
		return b.number(`SELECT count(*) FROM tasker.river_job WHERE state = 'scheduled' AND (args ->> 'task_id')::bigint = $1`, waits) == 1
	})
	b.start(with("test.later"))
	b.until("the task is complete", func() bool {
		return b.number(`SELECT count(*) FROM tasker.tasks WHERE task_id = $1 AND state = 'complete'`, waits) == 1
	})
}

// Of several workers with a handler only the first one to come wakes.
func TestAHandlerThatIsThereAlreadyWakesNobody(t *testing.T) {
	b := setup(t)
	b.register(twoWorkers)
	b.enqueue("two_workers", `{}`)
	b.exec(`UPDATE tasker.steps SET state = CASE position WHEN 0 THEN 'skipped' ELSE 'pending' END`)
	b.exec(`UPDATE tasker.river_job SET state = 'scheduled', scheduled_at = now() + interval '1 hour'`)
	b.exec(`INSERT INTO tasker.workers (name, client_id, details) VALUES ('1', 'client 1', '{"handlers": ["test.rare"]}'), ('2', 'client 2', '{"handlers": ["test.rare"]}')`)
	b.exec(`INSERT INTO tasker.workers (name, client_id, details) VALUES ('other', 'other', '{"handlers": ["test.later", "test.unused"]}')`)
	for _, name := range []string{"2", "other"} { // test.later: its step can't start yet
		if woken, err := b.store.WakeHandled(t.Context(), int64(b.number(`SELECT worker_id FROM tasker.workers WHERE name = $1`, name))); err != nil || woken != 0 {
			t.Errorf("worker %s wakes %d tasks, %v; want none", name, woken, err)
		}
	}
	b.exec(`UPDATE tasker.workers SET state = 'dead' WHERE name = '1'`)
	if woken, err := b.store.WakeHandled(t.Context(), int64(b.number(`SELECT worker_id FROM tasker.workers WHERE name = '2'`))); err != nil || woken != 1 {
		t.Errorf("the worker that is left wakes %d tasks, %v; want 1", woken, err)
	}
}

// What comes due is rung for: nobody waits for River to look.
func TestWhatComesDueIsRungFor(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	b.start(rarely)
	b.exec(`INSERT INTO tasker.tasks (namespace, name, run_at) SELECT 'test', 'one', now() + s * interval '1 second' FROM generate_series(2, 4) s`)
	b.exec(`INSERT INTO tasker.tasks (namespace, name, run_at) VALUES ('test', 'one', now() + interval '11 seconds')`) // by way of River's scheduler
	b.finish()
	b.want("4", `SELECT count(*)::text FROM tasker.tasks WHERE state = 'complete'`)
}

// River makes a job available a moment before it is due, or after; a beat may
// see it only when it is overdue.
func TestWhatCameDueSinceTheLastBeatIsRungForAtOnce(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	id, err := b.store.RegisterWorker(t.Context(), "w", "w", time.Hour, nil)
	if err != nil {
		t.Fatal(err)
	}
	b.enqueue("one", `{}`)
	b.exec(`UPDATE tasker.river_job SET scheduled_at = clock_timestamp() - interval '1 second'`)
	if p, err := b.store.Beat(t.Context(), id); err != nil || p.Due != 1 {
		t.Errorf("due in %s, %v; want at once", p.Due, err)
	}
	b.exec(`UPDATE tasker.river_job SET scheduled_at = clock_timestamp() - interval '1 minute'`) // a backlog: nobody has room
	if p, err := b.store.Beat(t.Context(), id); err != nil || p.Due != 0 {
		t.Errorf("due in %s, %v; want nothing to ring for", p.Due, err)
	}
}

func TestWhatIsHandedOverIsRungFor(t *testing.T) {
	b := setup(t)
	b.register(`
name: two_workers
namespace_name: test
step_templates:
  - {name: here, handler: test.one}
  - {name: there, handler: test.two, depends_on_step: here}`)
	b.start(with("test.one"), rarely)
	b.start(with("test.two"), rarely)
	b.enqueueMany("two_workers", `{}`, 20)
	b.finish()
	b.want("20", `SELECT count(*)::text FROM tasker.tasks WHERE state = 'complete'`)
}

// The longer a task has gone to and fro, the longer it waits each time; a bell
// that rings for others before that isn't its bell.
func TestEachWaitIsRungFor(t *testing.T) {
	b := setup(t)
	b.register(`
name: two_workers
namespace_name: test
step_templates:
  - {name: here, handler: test.one}
  - {name: there, handler: test.two, depends_on_step: here}`)
	b.enqueueMany("two_workers", `{}`, 20)
	b.exec(`UPDATE tasker.tasks SET epoch = 10 WHERE task_id % 2 = 0`)
	b.start(with("test.one"), rarely)
	b.start(with("test.two"), rarely)
	b.finish()
	b.want("20", `SELECT count(*)::text FROM tasker.tasks WHERE state = 'complete'`)
}
