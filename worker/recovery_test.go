package worker_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/worker"
)

const mixedGoSteps = `
name: mixed
namespace_name: test
step_templates:
  - {name: a, handler: tasker.sleep, handler_config: {seconds: 0.05}}
  - {name: b, handler: tasker.sleep, handler_config: {seconds: 0.05}, depends_on_step: a}
  - {name: c, handler: tasker.fail, handler_config: {times: 1}, depends_on_step: a, retry: {base_seconds: 0.05}}
  - {name: d, handler: tasker.sleep, handler_config: {seconds: 0.05}, depends_on_steps: [b, c]}`

// Guarantee 2: a worker that dies takes nothing with it.
func TestTasksOfAKilledWorkerGoOnInAnother(t *testing.T) {
	b := setup(t)
	b.register(mixedGoSteps)
	first := b.worker("--lease", "2s")
	b.enqueueMany("mixed", `{}`, 200)
	b.until("the worker is in the middle", func() bool {
		return b.number(`SELECT count(*) FROM tasker.steps WHERE state = 'complete'`) > 150
	})
	first.kill(b)
	if open := b.number(`SELECT count(*) FROM tasker.tasks WHERE state IN ('pending', 'in_progress')`); open == 0 {
		t.Fatal("the worker was killed too late: nothing was open")
	}
	second := b.worker("--lease", "2s")
	b.finish()
	b.want("200", `SELECT count(*)::text FROM tasker.tasks WHERE state = 'complete'`)
	b.want("800", `SELECT count(*)::text FROM tasker.steps WHERE state = 'complete'`)
	b.checkHistory()
	if code := second.terminate(b); code != 0 {
		t.Errorf("the worker's exit code after SIGTERM is %d", code)
	}
}

// checkHistory holds the events against what must be: each step has exactly one
// accepted result, attempts are numbered without gaps, retries that the step
// asked for stay within its limit.
func (b *bundle) checkHistory() {
	b.Helper()
	b.want("0", `SELECT count(*)::text FROM (
		SELECT step_id FROM tasker.events WHERE name = 'step.completed' GROUP BY step_id HAVING count(*) > 1) twice`)
	b.want("0", `SELECT count(*)::text FROM tasker.steps s WHERE state = 'complete' AND NOT EXISTS (
		SELECT FROM tasker.events e WHERE e.step_id = s.step_id AND e.name = 'step.completed' AND e.attempt = s.attempts)`)
	b.want("0", `SELECT count(*)::text FROM tasker.steps s LEFT JOIN (
		SELECT step_id, count(DISTINCT attempt) AS n FROM tasker.events WHERE name IN ('step.handle', 'step.execution_requested') GROUP BY step_id) e USING (step_id)
		WHERE s.attempts <> coalesce(e.n, 0)`)
	b.want("0", `SELECT count(*)::text FROM tasker.steps s JOIN tasker.tasks t USING (task_id)
		JOIN tasker.template_steps ts ON ts.template_id = t.template_id AND ts.position = s.position
		WHERE s.attempts - s.losses > ts.attempt_limit`)
	b.want("0", `SELECT count(*)::text FROM tasker.dispatches d JOIN tasker.steps s USING (step_id) WHERE s.state NOT IN ('enqueued', 'in_progress')`)
	b.healthy()
}

// Guarantee 3: a worker that was only paused can't write once its tasks were
// taken from it.
func TestAPausedWorkerCannotWrite(t *testing.T) {
	b := setup(t)
	b.register(`
name: long
namespace_name: test
step_templates:
  - {name: a, handler: tasker.sleep, handler_config: {seconds: 1}}
  - {name: b, handler: tasker.echo, depends_on_step: a}`)
	paused := b.worker("--lease", "1s")
	task := b.enqueue("long", `{}`)
	b.until("the step runs", func() bool { return b.step(task, "a").State == tasker.StepInProgress })
	if err := paused.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	b.worker("--lease", "1s")
	b.finish()
	finished := b.text(`SELECT string_agg(concat_ws(' ', name, state, attempts, losses, finished_at), ', ' ORDER BY position) FROM tasker.steps`)

	if err := paused.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	b.until("the paused worker knows that it was declared dead, and has started anew", func() bool {
		return b.number(`SELECT count(*) FROM tasker.workers`) == 3
	})
	b.want(finished, `SELECT string_agg(concat_ws(' ', name, state, attempts, losses, finished_at), ', ' ORDER BY position) FROM tasker.steps`)
	b.want("complete 2 1", `SELECT concat_ws(' ', state, attempts, losses) FROM tasker.steps WHERE name = 'a'`)
	b.checkHistory()
	if code := paused.terminate(b); code != 0 {
		t.Errorf("the worker's exit code after SIGTERM is %d", code)
	}
}

// The same by hand, at each of the doors that a worker writes through.
func TestADeadWorkersWritesAreRefused(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	task := b.enqueue("one", `{}`)
	ctx := t.Context()
	dead, err := b.store.RegisterWorker(ctx, "dead", "dead-client", time.Millisecond, nil)
	if err != nil {
		t.Fatal(err)
	}
	claimed, err := b.store.NewClaimer(ctx, dead).Claim(ctx, task)
	if err != nil || claimed == nil {
		t.Fatalf("claim: %v, %v", claimed, err)
	}
	alive, err := b.store.RegisterWorker(ctx, "alive", "alive-client", time.Hour, nil)
	if err != nil {
		t.Fatal(err)
	}
	b.exec(`UPDATE tasker.workers SET last_seen_at = now() - interval '1 minute' WHERE worker_id = $1`, dead)
	b.until("the dead worker is found", func() bool { // not at once while the server itself is younger than the lease
		freed, err := b.store.ReapWorker(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return freed == 1
	})
	b.want("t 2", `SELECT concat_ws(' ', owner IS NULL, epoch) FROM tasker.tasks`)

	write := &store.Unit{Task: task, Epoch: claimed.Epoch, Steps: []store.StepWrite{{
		Step: claimed.Steps[0].StepID, Was: tasker.StepPending, State: tasker.StepInProgress, Attempt: 1}}}
	if err := b.store.NewWriter(ctx, dead).Write(ctx, write); !errors.Is(err, store.ErrWorkerDead) {
		t.Errorf("a dead worker's write: got %v, want ErrWorkerDead", err)
	}
	if _, err := b.store.NewClaimer(ctx, dead).Claim(ctx, task); !errors.Is(err, store.ErrWorkerDead) {
		t.Errorf("a dead worker's claim: got %v, want ErrWorkerDead", err)
	}
	if _, err := b.store.Beat(ctx, dead); !errors.Is(err, store.ErrWorkerDead) {
		t.Errorf("a dead worker's beat: got %v, want ErrWorkerDead", err)
	}
	// The living one may write, but not with the epoch of the loop before.
	if err := b.store.NewWriter(ctx, alive).Write(ctx, write); !errors.Is(err, store.ErrStale) {
		t.Errorf("a write by a worker that doesn't own the task: got %v, want ErrStale", err)
	}
	b.want("pending 0", `SELECT concat_ws(' ', state, attempts) FROM tasker.steps`)
}

// One loop's stale write doesn't spoil those that happen to be in its batch.
func TestARefusedUnitDoesNotTouchTheOthersOfItsBatch(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	ids := b.enqueueMany("one", `{}`, 20)
	ctx := t.Context()
	id, err := b.store.RegisterWorker(ctx, "w", "w", time.Hour, nil)
	if err != nil {
		t.Fatal(err)
	}
	claimer, writer := b.store.NewClaimer(ctx, id), b.store.NewWriter(ctx, id)
	units := make([]*store.Unit, len(ids))
	for i, task := range ids {
		claimed, err := claimer.Claim(ctx, task)
		if err != nil {
			t.Fatal(err)
		}
		units[i] = &store.Unit{Task: task, Epoch: claimed.Epoch, Steps: []store.StepWrite{{
			Step: claimed.Steps[0].StepID, Was: tasker.StepPending, State: tasker.StepInProgress, Attempt: 1}}}
		if i%7 == 3 {
			units[i].Epoch-- // the epoch of an owner before
		}
	}
	var all sync.WaitGroup
	for i, unit := range units { // together, so that they meet in batches
		all.Go(func() {
			err := writer.Write(ctx, unit)
			if stale := i%7 == 3; stale != errors.Is(err, store.ErrStale) || !stale && err != nil {
				t.Errorf("unit %d: got %v", i, err)
			}
		})
	}
	all.Wait()
	b.want("3 pending 17 in_progress", `SELECT string_agg(concat_ws(' ', n, state), ' ' ORDER BY n) FROM (SELECT state, count(*) AS n FROM tasker.steps GROUP BY state) x`)
}

// Guarantee 2 once more: a Postgres that crashes and comes back.
func TestAPostgresThatCrashesLosesNothing(t *testing.T) {
	b, postgres := setupOwnPostgres(t)
	b.register(mixedGoSteps)
	b.register(rubyWork)
	b.start()
	b.sidekiq()
	b.enqueueMany("mixed", `{}`, 60)
	b.enqueueMany("work", `{}`, 40)
	for crash := range 3 {
		b.until("the work goes on", func() bool { return b.number(`SELECT count(*) FROM tasker.steps WHERE state = 'complete'`) > crash*50 })
		if err := postgres.StopImmediate(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := postgres.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.pool.Reset()
		b.until("Postgres answers", func() bool { return b.pool.Ping(t.Context()) == nil })
	}
	b.finish()
	b.want("100", `SELECT count(*)::text FROM tasker.tasks WHERE state = 'complete'`)
	b.checkHistory()
}

// Connections that break under a working system are made again.
func TestConnectionsThatBreakAreMadeAgain(t *testing.T) {
	b := setup(t)
	b.register(mixedGoSteps)
	b.start()
	b.enqueueMany("mixed", `{}`, 50)
	for range 5 {
		before := b.number(`SELECT count(*) FROM tasker.steps WHERE state = 'complete'`)
		b.exec(`SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`)
		b.until("the worker goes on", func() bool {
			return b.number(`SELECT count(*) FROM tasker.steps WHERE state = 'complete'`) > before ||
				b.number(`SELECT count(*) FROM tasker.tasks WHERE state IN ('pending', 'in_progress')`) == 0
		})
	}
	b.finish()
	b.want("50", `SELECT count(*)::text FROM tasker.tasks WHERE state = 'complete'`)
	b.checkHistory()
}

// River's fetch was committed, and its answer lost: the job runs, as far as
// anybody can read, and no worker has it.
func TestAJobWhoseFetchWasNeverHeardOfComesBack(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	w := b.worker()
	b.exec(`INSERT INTO tasker.tasks (namespace, name, run_at) VALUES ('test', 'one', now() + interval '1 hour')`)
	b.exec(`UPDATE tasker.river_job SET state = 'running', attempt = 1, attempted_at = now(), attempted_by = ARRAY[(SELECT client_id FROM tasker.workers)]`)
	b.exec(`UPDATE tasker.tasks SET run_at = now()`)
	b.finish()
	for _, said := range []struct {
		text string
		want bool
	}{{"jobs were fetched whose answer was lost", true}, {"nothing would have brought back", false}} {
		if strings.Contains(w.log.String(), said.text) != said.want {
			t.Errorf("the worker says %q: %t, want %t", said.text, !said.want, said.want)
		}
	}
}

// Guarantee 5: a process whose heartbeats the database has kept waiting is not taken for
// dead, however long that lasts.
func TestADatabaseThatStandsStillKillsNoProcess(t *testing.T) {
	b := setup(t)
	b.register(`{name: ruby, namespace_name: test, step_templates: [{name: only, handler_class: Work}]}`)
	const silence = 2 * time.Second
	b.start(func(c *worker.Config) {
		c.Lease, c.SilentProcess, c.ClockEvery = 2*time.Second, silence, 50*time.Millisecond
	})
	process := b.number(`SELECT tasker.register_process('test')`)
	task := b.enqueue("ruby", `{}`)
	step := b.dispatched(task, 1)
	b.exec(`SELECT standin.start_attempt($1, 1, $2)`, step, process)
	conn, err := b.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }() // it may have ended
	if _, err := tx.Exec(t.Context(), `SELECT FROM tasker.workers FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT FROM tasker.processes FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	beat := make(chan error, 1)
	go func() {
		_, err := b.pool.Exec(t.Context(), `SELECT tasker.process_beat($1)`, process)
		beat <- err
	}()
	b.until("the heartbeat has waited for longer than a silent process may", func() bool {
		return b.number(`SELECT count(*) FROM tasker.processes WHERE last_seen_at < clock_timestamp() - $1::interval`, 2*silence) == 1
	})
	b.want("0", `SELECT losses::text FROM tasker.steps WHERE step_id = $1`, step)
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-beat; err != nil {
		t.Fatal(err)
	}
	b.want("in_progress, 0 lost", `SELECT format('%s, %s lost', state, losses) FROM tasker.steps WHERE step_id = $1`, step)
	// Once the database answers again, silence is what it was.
	b.until("the attempt of the silent process is lost", func() bool {
		return b.number(`SELECT losses FROM tasker.steps WHERE step_id = $1`, step) == 1
	})
}
