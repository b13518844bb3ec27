package worker_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/taskertest"
)

func setupForTravel(t *testing.T) *bundle {
	b := setup(t)
	b.must(taskertest.Mark(t.Context(), b.pool))
	return b
}

func (b *bundle) travel(d time.Duration) {
	b.Helper()
	b.must(taskertest.Travel(b.Context(), b.pool, d))
}

// A retry in five minutes begins at once, whether a River job waits for it or
// the loop of a task that is busy otherwise.
func TestARetryBeginsWhenItsTestHasTravelled(t *testing.T) {
	b := setupForTravel(t)
	g := newGate(b, "gate")
	b.register(`
name: parked
namespace_name: test
step_templates: [{name: fails, handler: tasker.fail, handler_config: {times: 1}, retry: {base_seconds: 300}}]`)
	b.register(`
name: busy
namespace_name: test
step_templates:
  - {name: fails, handler: tasker.fail, handler_config: {times: 1}, retry: {base_seconds: 300}}
  - {name: runs, handler: gate}`)
	b.start()
	b.enqueue("parked", `{}`)
	busy := b.enqueue("busy", `{}`)
	<-g.running
	b.until("both wait for their retry, and one of them in its loop", func() bool {
		return b.number(`SELECT count(*) FROM tasker.steps WHERE state = 'waiting_for_retry'`) == 2 &&
			b.number(`SELECT count(*) FROM tasker.tasks WHERE owner IS NOT NULL`) == 1
	})
	b.travel(4 * time.Minute)
	b.want("2", `SELECT count(*)::text FROM tasker.steps WHERE state = 'waiting_for_retry' AND retry_at BETWEEN now() AND now() + interval '90 s'`)
	b.travel(90 * time.Second)
	b.until("both have been retried", func() bool {
		return b.number(`SELECT count(*) FROM tasker.steps WHERE name = 'fails' AND state = 'complete' AND attempts = 2`) == 2
	})
	b.want("1", `SELECT attempts::text FROM tasker.steps WHERE name = 'runs'`) // it runs on
	close(g.release)
	b.finish()
	b.want("complete", `SELECT state FROM tasker.tasks WHERE task_id = $1`, busy)
	b.want("alive", `SELECT string_agg(state, ', ') FROM tasker.workers`)
}

func TestDeadlinesPassAndTasksOfTomorrowStart(t *testing.T) {
	b := setupForTravel(t)
	g := newGate(b, "gate")
	b.register(`
name: hour
namespace_name: test
deadline_seconds: 3600
step_templates: [{name: runs, handler: gate}]`)
	b.register(oneGoStep)
	b.start()
	late := b.enqueue("hour", `{}`)
	<-g.running
	b.exec(`INSERT INTO tasker.tasks (namespace, name, run_at) VALUES ('test', 'one', now() + interval '1 day')`)
	b.travel(59 * time.Minute)
	b.want("in_progress pending", `SELECT string_agg(state, ' ' ORDER BY task_id) FROM tasker.tasks`)
	b.travel(2 * time.Minute)
	b.want("error task_deadline", `SELECT concat_ws(' ', state, error ->> 'code') FROM tasker.tasks WHERE task_id = $1`, late) // in the call itself
	b.until("the handler was told", func() bool { return g.stopped.Load() == 1 })
	b.want("pending", `SELECT state FROM tasker.tasks WHERE run_at IS NOT NULL`)
	b.travel(23 * time.Hour)
	b.finish()
	b.want("complete", `SELECT state FROM tasker.tasks WHERE run_at IS NOT NULL`)
}

// The three clocks of an attempt at Sidekiq, and a process that lives on.
func TestAttemptsOfRubyStepsTimeOut(t *testing.T) {
	b := setupForTravel(t)
	b.register(`
name: clocks
namespace_name: test
retry: {backoff: fixed, base_seconds: 86400, cap_seconds: 86400}
step_templates:
  - {name: queued, handler_class: Echo, schedule_to_start_seconds: 7200}
  - {name: beats, handler_class: Echo, heartbeat_seconds: 3000, timeout_seconds: 9000}
  - {name: works, handler_class: Echo, timeout_seconds: 3600}
  - {name: long, handler_class: Echo, timeout_seconds: 8000}`)
	b.start()
	task := b.enqueue("clocks", `{}`)
	b.until("all are out", func() bool { return len(b.queued("default")) == 4 })
	process := b.number(`SELECT tasker.register_process('a test')`)
	b.exec(`SELECT standin.start_attempt(step_id, 1, $2) FROM tasker.steps WHERE task_id = $1 AND name <> 'queued'`, task, process)
	b.travel(50 * time.Minute)
	b.want("beats", `SELECT string_agg(s.name, ', ') FROM tasker.steps s LEFT JOIN tasker.dispatches d USING (step_id) WHERE coalesce(d.failure, s.error) ->> 'code' = 'heartbeat_timeout'`)
	b.travel(10 * time.Minute)
	b.travel(time.Hour)
	b.until("three have failed", func() bool {
		return b.number(`SELECT count(*) FROM tasker.steps WHERE state = 'waiting_for_retry'`) == 3
	})
	b.want("queued schedule_to_start_timeout, beats heartbeat_timeout, works attempt_timeout, long ",
		`SELECT string_agg(concat(name, ' ', error ->> 'code'), ', ' ORDER BY position) FROM tasker.steps`)
	b.want("in_progress 1 0", `SELECT concat_ws(' ', state, attempts, losses) FROM tasker.steps WHERE name = 'long'`)
	b.want("true", `SELECT (stopped_at IS NULL AND last_seen_at > now() - interval '10 min')::text FROM tasker.processes`)
}

func TestARateLimitLetsPassWhatHasBecomeDue(t *testing.T) {
	b := setupForTravel(t)
	b.register(oneGoStep)
	b.exec(`SELECT tasker.set_limit('template', 'test/one', NULL, 0.001, 1)`)
	b.start()
	b.enqueueMany("one", `{}`, 3)
	b.until("one has passed, and two stand in line", func() bool {
		return b.number(`SELECT count(*) FROM tasker.tasks WHERE state = 'complete'`) == 1 && b.number(`SELECT count(*) FROM tasker.gate_waiters`) == 2
	})
	b.travel(1000 * time.Second)
	b.until("another has passed", func() bool { return b.number(`SELECT count(*) FROM tasker.tasks WHERE state = 'complete'`) == 2 })
	b.travel(1000 * time.Second)
	b.finish()
}

func TestTravelIsRefusedWhereItWouldDoHarm(t *testing.T) {
	b := setup(t)
	err := taskertest.Travel(t.Context(), b.pool, time.Hour)
	var refused *store.RefusedError
	if !errors.As(err, &refused) || !strings.Contains(err.Error(), "time travel is for test databases") {
		t.Errorf("an unmarked database: got %v", err)
	}
	b.must(taskertest.Mark(t.Context(), b.pool))
	if err := taskertest.Travel(t.Context(), b.pool, -time.Second); !errors.As(err, &refused) {
		t.Errorf("back in time: got %v", err)
	}
	b.must(taskertest.Travel(t.Context(), b.pool, 0))
}

// A worker under load and journeys all the time: nothing is lost, done twice, or
// taken from a worker that lives.
func TestJourneysDoNotDisturbWork(t *testing.T) {
	b := setupForTravel(t)
	b.handlers.Register("works", func(context.Context, *tasker.Attempt) (any, error) { return "done", nil })
	b.register(`
name: chain
namespace_name: test
step_templates:
  - {name: a, handler: works}
  - {name: b, handler: tasker.fail, handler_config: {times: 1}, retry: {base_seconds: 60}, depends_on_step: a}
  - {name: c, handler: works, depends_on_step: b}`)
	b.start()
	b.enqueueMany("chain", `{}`, 50)
	for journeys := 0; b.number(`SELECT count(*) FROM tasker.tasks WHERE state = 'complete'`) < 50; journeys++ {
		if journeys == 200 {
			b.Fatal("200 minutes were not enough")
		}
		b.until("something waits, or all is done", func() bool {
			return b.number(`SELECT count(*) FROM tasker.steps WHERE state = 'waiting_for_retry'`) > 0 ||
				b.number(`SELECT count(*) FROM tasker.tasks WHERE state = 'complete'`) == 50
		})
		b.travel(61 * time.Second)
		b.travel(6 * time.Second)
	}
	b.want("a 1 0, b 2 0, c 1 0", `SELECT string_agg(line, ', ' ORDER BY line) FROM (SELECT DISTINCT concat_ws(' ', name, attempts, losses) AS line FROM tasker.steps) x`)
	b.want("alive", `SELECT string_agg(state, ', ') FROM tasker.workers`)
}
