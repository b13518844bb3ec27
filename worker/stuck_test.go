package worker_test

import (
	"context"
	"crypto/rand"
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/testenv"
	"github.com/taskerhq/tasker/worker"
)

// A worker that was declared dead has fetched River jobs that it can't serve.
// They must not count as done.
func TestJobsFetchedByADeadWorkerAreServedAfterAll(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	b.start()
	b.exec(`UPDATE tasker.workers SET state = 'dead'`)
	b.enqueueMany("one", `{}`, 50)
	b.finish()
	b.want("50", `SELECT count(*)::text FROM tasker.tasks WHERE state = 'complete'`)
}

// A claim whose answer was lost leaves the task owned by a worker that runs no
// loop for it. The River job comes back, and the worker takes the task again.
func TestATaskThatItsOwnerHasNoLoopForIsTakenAgain(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	b.exec(`CREATE FUNCTION claim_on_insert() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN PERFORM tasker.claim_tasks((SELECT max(worker_id) FROM tasker.workers), ARRAY[NEW.task_id]); RETURN NULL; END $$`)
	b.exec(`CREATE TRIGGER zz_claim AFTER INSERT ON tasker.tasks FOR EACH ROW EXECUTE FUNCTION claim_on_insert()`)
	b.start()
	b.enqueue("one", `{}`)
	b.finish()
	b.want("complete 2", `SELECT concat_ws(' ', state, epoch) FROM tasker.tasks`)
}

// Writes that fail for a reason that passes, but is none of the usual ones.
func TestATaskOutlivesAnErrorThatNobodyForesaw(t *testing.T) {
	b := setup(t)
	b.register(mixedGoSteps)
	b.exec(`CREATE TABLE trouble (on_purpose boolean)`)
	b.exec(`CREATE FUNCTION fail_on_purpose() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN IF EXISTS (SELECT FROM public.trouble) THEN RAISE EXCEPTION 'on purpose' USING ERRCODE = '25006'; END IF; RETURN NULL; END $$`)
	b.exec(`CREATE TRIGGER zz_fail BEFORE UPDATE ON tasker.steps FOR EACH STATEMENT EXECUTE FUNCTION fail_on_purpose()`)
	b.start()
	b.enqueueMany("mixed", `{}`, 20)
	b.until("the tasks are in the middle", func() bool { return b.number(`SELECT count(*) FROM tasker.steps WHERE state = 'complete'`) > 5 })
	b.exec(`INSERT INTO trouble VALUES (true)`)
	b.until("tasks are given up", func() bool {
		return b.number(`SELECT count(*) FROM tasker.tasks WHERE state = 'in_progress' AND owner IS NULL`) > 0
	})
	b.exec(`DELETE FROM trouble`)
	b.until("the tasks that were given up for a minute are due", func() bool {
		b.exec(`UPDATE tasker.river_job SET state = 'available', scheduled_at = now() WHERE state IN ('scheduled', 'retryable')`)
		return b.number(`SELECT count(*) FROM tasker.tasks WHERE state IN ('pending', 'in_progress')`) == 0
	})
	b.want("20", `SELECT count(*)::text FROM tasker.tasks WHERE state = 'complete'`)
	b.checkHistory()
}

// The last net: whatever took a task's River job away.
func TestAForgottenTaskIsFoundAndBroughtBack(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	b.register(oneRubyStep)
	forgotten := b.enqueueMany("one", `{}`, 3)
	b.exec(`TRUNCATE tasker.river_job`)
	b.exec(`INSERT INTO tasker.tasks (namespace, name, run_at) VALUES ('test', 'one', now() + interval '1 hour')`) // not forgotten
	// Left running by a client that is gone, and owned by a worker that has stopped.
	b.exec(`INSERT INTO tasker.workers (name, client_id, state) VALUES ('gone', 'gone', 'stopped')`)
	running := b.enqueue("one", `{}`)
	b.exec(`UPDATE tasker.river_job SET state = 'running', attempted_by = '{gone}', attempted_at = now() - interval '6 seconds' WHERE (args ->> 'task_id')::bigint = $1`, running)
	owned := b.enqueue("one", `{}`)
	b.exec(`UPDATE tasker.tasks SET owner = (SELECT worker_id FROM tasker.workers), state = 'in_progress' WHERE task_id = $1`, owned)
	b.exec(`DELETE FROM tasker.river_job WHERE (args ->> 'task_id')::bigint = $1`, owned)

	found, err := b.store.Sweep(t.Context())
	if err != nil || found != len(forgotten)+2 {
		t.Fatalf("the sweep found %d tasks (%v), want %d", found, err, len(forgotten)+2)
	}
	if found, err := b.store.Sweep(t.Context()); err != nil || found != 0 {
		t.Errorf("a second sweep found %d tasks (%v), want none", found, err)
	}
	b.start()
	b.until("all but the one for later are complete", func() bool { return b.number(`SELECT count(*) FROM tasker.tasks WHERE state = 'complete'`) == 5 })
	b.want("1", `SELECT count(*)::text FROM tasker.tasks WHERE state = 'pending'`)
}

// Who declares a worker dead waits for nobody: a task that somebody holds in that
// moment is left out, and freed by a later beat, not by the sweep.
func TestATaskThatIsHeldWhileItsWorkerDiesIsFreedByTheNextBeat(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	ctx := t.Context()
	tasks := b.enqueueMany("one", `{}`, 2)
	dies, err := b.store.RegisterWorker(ctx, "dies", "dies", time.Second, nil)
	b.must(err)
	lives, err := b.store.RegisterWorker(ctx, "lives", "lives", time.Hour, nil)
	b.must(err)
	for _, task := range tasks {
		_, err := b.store.NewClaimer(ctx, dies).Claim(ctx, task)
		b.must(err)
	}
	b.exec(`UPDATE tasker.river_job SET state = 'completed', finalized_at = now()`)
	b.exec(`UPDATE tasker.workers SET last_seen_at = now() - interval '1 minute' WHERE worker_id = $1`, dies)
	holds, err := b.pool.Begin(ctx)
	b.must(err)
	_, err = holds.Exec(ctx, `SELECT FROM tasker.tasks WHERE task_id = $1 FOR UPDATE`, tasks[0])
	b.must(err)
	reap := func(suspect bool, freed int) {
		t.Helper()
		pulse, err := b.store.Beat(ctx, lives)
		b.must(err)
		n, err := b.store.ReapWorker(ctx)
		b.must(err)
		if pulse.Suspect != suspect || n != freed {
			t.Errorf("suspect %t, freed %d, want %t and %d", pulse.Suspect, n, suspect, freed)
		}
	}
	reap(true, 1)
	reap(true, 0)
	b.must(holds.Rollback(ctx))
	reap(true, 1)
	reap(false, 0)
	b.want("2", `SELECT count(*)::text FROM tasker.river_job WHERE state = 'available'`)
}

// A worker that was paused and doesn't know yet that it is dead fetches a job, and puts
// it off when it learns: that is not for the sweep.
func TestTheSweepLeavesAloneWhatHasJustBeenFetched(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	b.enqueue("one", `{}`)
	b.exec(`INSERT INTO tasker.workers (name, client_id, state) VALUES ('gone', 'gone', 'dead')`)
	for _, since := range []int{0, 6} {
		b.exec(`UPDATE tasker.river_job SET state = 'running', attempted_by = '{gone}', attempted_at = now() - $1 * interval '1 second'`, since)
		if found, err := b.store.Sweep(t.Context()); err != nil || found != since/6 {
			t.Errorf("the sweep found %d (%v) of what was fetched %d s ago", found, err, since)
		}
	}
}

// A client whose connection breaks after it has fetched a job, and before it hears
// so, never runs that job: it stays running in a client that is alive.
func TestATaskWhoseJobWasLostOnItsWayIsFound(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	b.start()
	b.exec(`INSERT INTO tasker.tasks (namespace, name, run_at) VALUES ('test', 'one', now() + interval '1 hour')`)
	b.exec(`UPDATE tasker.river_job SET state = 'running', attempt = 1, attempted_at = now(), attempted_by = ARRAY[(SELECT client_id FROM tasker.workers)]`)
	b.exec(`UPDATE tasker.tasks SET run_at = NULL`)
	if found, err := b.store.Sweep(t.Context()); err != nil || found != 0 {
		t.Fatalf("the sweep found %d tasks (%v) whose job may still begin", found, err)
	}
	b.exec(`UPDATE tasker.river_job SET attempted_at = now() - interval '31 seconds'`)
	if _, err := b.store.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.finish()
	b.want("complete", `SELECT state FROM tasker.tasks`)
}

// An app may report inside its own transaction and keep that open. Nobody else
// may wait for it: not other tasks, not heartbeats, not the search for the dead.
func TestAnOpenReportHoldsUpNobodyElse(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	b.register(oneRubyStep)
	// Long enough for the report to come before its task is parked, on a busy
	// machine too: a parked one would wait for the report, and rightly so.
	b.start(parkAfter(500*time.Millisecond), func(c *worker.Config) { c.Lease = time.Second })
	var open []pgx.Tx
	for range 4 { // more than there are writers
		app, err := pgx.Connect(t.Context(), b.url)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = app.Close(context.Background()) }) // the test is over
		tx, err := app.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		step := b.dispatched(b.enqueue("ruby", `{}`), 1)
		if _, err := tx.Exec(t.Context(), `SELECT standin.report_results(jsonb_build_array(jsonb_build_object('step_id', $1::bigint, 'attempt', 1, 'outcome', 'success')))`, step); err != nil {
			t.Fatal(err)
		}
		open = append(open, tx)
	}
	// Other tasks run, also while the four try to park, which is twice meanwhile.
	for begun := time.Now(); time.Since(begun) < 1200*time.Millisecond; {
		b.enqueueMany("one", `{}`, 5)
		b.until("the other tasks are complete", func() bool {
			return b.number(`SELECT count(*) FROM tasker.tasks WHERE name = 'one' AND state <> 'complete'`) == 0
		})
	}
	if _, _, err := b.store.ReadClocks(t.Context(), time.Nanosecond, time.Hour); err != nil {
		t.Error(err)
	}
	// The worker dies in the database's eyes, and its tasks are taken over.
	within, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := b.store.StopWorker(within, int64(b.number(`SELECT worker_id FROM tasker.workers WHERE state = 'alive'`))); err != nil {
		t.Fatal(err)
	}
	b.until("the worker has started anew and owns the four", func() bool {
		return b.number(`SELECT count(*) FROM tasker.tasks t JOIN tasker.workers w ON w.worker_id = t.owner AND w.state = 'alive' WHERE t.name = 'ruby'`) == 4
	})
	for _, tx := range open {
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	b.finish()
	b.want("0", `SELECT count(*)::text FROM tasker.tasks WHERE state <> 'complete'`)
}

// The heartbeat is a transaction of its own, and who was silent judges nobody.
func TestABeatSaysHowLongTheWorkerWasSilent(t *testing.T) {
	b := setup(t)
	id, err := b.store.RegisterWorker(t.Context(), "w", "w", time.Hour, nil)
	if err != nil {
		t.Fatal(err)
	}
	b.exec(`UPDATE tasker.workers SET last_seen_at = clock_timestamp() - interval '7 s'`)
	p, err := b.store.Beat(t.Context(), id)
	if err != nil || p.Silent < 7*time.Second || p.Silent > 7*time.Second+patience || p.Suspect || p.Due != 0 {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err := b.store.Beat(t.Context(), id); err != nil || p.Silent > patience {
		t.Errorf("the next beat: silent for %s, %v", p.Silent, err)
	}
	b.register(oneGoStep)
	b.exec(`INSERT INTO tasker.tasks (namespace, name, run_at) SELECT 'test', 'one', now() + s * interval '1 second' FROM unnest('{-1, 4, 3}'::int[]) s`)
	b.exec(`UPDATE tasker.river_job SET state = 'available', scheduled_at = now() + s * interval '10 seconds'
		FROM (SELECT id, row_number() OVER (ORDER BY scheduled_at) - 1 AS s FROM tasker.river_job) o WHERE o.id = river_job.id AND s > 0`)
	b.exec(`INSERT INTO tasker.workers (name, client_id, lease, last_seen_at) VALUES ('gone', 'gone', '1 s', clock_timestamp() - interval '1 day')`)
	b.until("the other's lease has passed since the server started", func() bool {
		p, err := b.store.Beat(t.Context(), id)
		return err == nil && p.Suspect
	})
	if p, err := b.store.Beat(t.Context(), id); err != nil || p.Due <= 0 || p.Due > 10*time.Second {
		t.Errorf("the next job is due in %s, %v; want at most 10 s", p.Due, err)
	}
	if err := b.store.StopWorker(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if _, err := b.store.Beat(t.Context(), id); !errors.Is(err, store.ErrWorkerDead) {
		t.Errorf("a stopped worker's beat: %v", err)
	}
}

// Signing off waits for the worker's writes that are still in flight: none may
// land on a task after it was set free.
func TestSigningOffWaitsForWritesInFlight(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	task := b.enqueue("one", `{}`)
	id, err := b.store.RegisterWorker(t.Context(), "w", "w", time.Hour, nil)
	if err != nil {
		t.Fatal(err)
	}
	tx, err := b.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT tasker.claim_tasks($1, $2)`, id, []int64{task}); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- b.store.StopWorker(context.Background(), id) }()
	b.until("the sign-off waits", func() bool {
		return b.number(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%stop_worker%'`) == 1
	})
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	b.want("t stopped", `SELECT concat_ws(' ', owner IS NULL, w.state) FROM tasker.tasks, tasker.workers w`)
	b.want("1", `SELECT count(*)::text FROM tasker.river_job WHERE state = 'available' AND id > 1`)
}

// The fence must hold whatever isolation level the database's owner prefers.
func TestTheFenceHoldsUnderAStricterDefaultIsolation(t *testing.T) {
	b := setup(t)
	b.exec(`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation = ''repeatable read''', current_database()); END $$`)
	pool, err := store.Open(t.Context(), b.url, "test", 2)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	var level string
	if err := pool.QueryRow(t.Context(), `SHOW transaction_isolation`).Scan(&level); err != nil || level != "read committed" {
		t.Errorf("a worker's connection uses %q (%v)", level, err)
	}
}

// Whatever the database's owner has set, a worker has the session that it needs, and text
// that Postgres could not keep is refused before there is any.
func TestTheSettingsOfADatabaseDoNotReachTheWorker(t *testing.T) {
	b := setup(t)
	for _, setting := range []string{"default_transaction_isolation = serializable", "standard_conforming_strings = off", "client_encoding = LATIN1", "DateStyle = 'German, DMY'", "IntervalStyle = sql_standard", "search_path = public"} {
		b.exec(`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET ` + strings.ReplaceAll(setting, "'", "''") + `', current_database()); END $$`)
	}
	pool, err := store.Open(t.Context(), b.url, "test", 2)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	was := b.store
	b.store = store.New(pool)
	b.register(`{name: one, namespace_name: test, description: "it's ünïcode \\ ✓", step_templates: [{name: only, handler: tasker.echo, handler_config: {path: 'C:\dir ✓'}}]}`)
	b.store = was
	b.start()
	b.enqueue("one", `{}`)
	b.finish()
	var result, description string
	if err := pool.QueryRow(t.Context(), `SELECT s.result ->> 'path', m.description FROM tasker.steps s, tasker.task_templates m`).Scan(&result, &description); err != nil || result != `C:\dir ✓` || description != `it's ünïcode \ ✓` {
		t.Errorf("the result is %q, the description %q, %v", result, description, err)
	}
}

func TestADatabaseThatCannotKeepTextIsRefused(t *testing.T) {
	b := setup(t)
	admin := testenv.Pool(t, b.url)
	for _, c := range []struct{ name, encoding string }{{"latin", "LATIN1"}, {"ascii", "SQL_ASCII"}} {
		name := "test_" + c.name + "_" + strings.ToLower(rand.Text())
		if _, err := admin.Exec(t.Context(), `CREATE DATABASE `+name+` TEMPLATE template0 ENCODING '`+c.encoding+`' LOCALE 'C'`); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_, _ = admin.Exec(context.WithoutCancel(t.Context()), `DROP DATABASE IF EXISTS `+name+` WITH (FORCE)`)
		})
		at, err := url.Parse(b.url)
		if err != nil {
			t.Fatal(err)
		}
		at.Path = "/" + name
		if _, err := store.Open(t.Context(), at.String(), "test", 1); err == nil || !strings.Contains(err.Error(), "its encoding is "+c.encoding+", and has to be UTF8") {
			t.Errorf("a database in %s: got %v", c.encoding, err)
		}
	}
}

// The same attempt, written in two ways.
func TestAResultIsAcceptedOnceHoweverItIsWritten(t *testing.T) {
	b := setup(t)
	b.register(oneRubyStep)
	b.start()
	step := b.dispatched(b.enqueue("ruby", `{}`), 1)
	id := b.text(`SELECT $1::bigint::text`, step)
	b.want("1", `SELECT count(*) FILTER (WHERE accepted)::text FROM standin.report_results(
		jsonb_build_array('{"step_id": `+id+`, "attempt": 1, "outcome": "success"}'::jsonb, '{"step_id": "0`+id+`", "attempt": "01", "outcome": "success"}'::jsonb))`)
	b.finish()
	b.checkHistory()
}

// Timeouts bind Ruby attempts too, and Go handlers that don't listen.
func TestATimeoutBindsWhoeverRunsTheAttempt(t *testing.T) {
	b := setup(t)
	b.handlers.Register("deaf", func(context.Context, *tasker.Attempt) (any, error) {
		<-t.Context().Done() // ends with the test only
		return nil, nil
	})
	b.register(`
name: deaf
namespace_name: test
step_templates:
  - {name: ruby, handler_class: Echo, timeout_seconds: 0.1, default_retry_limit: 1}
  - {name: go, handler: deaf, timeout_seconds: 0.1, default_retry_limit: 1}`)
	b.start(func(c *worker.Config) { c.Shutdown = 10 * time.Millisecond })
	task := b.enqueue("deaf", `{}`)
	b.until("the Ruby attempt is out", func() bool { return b.step(task, "ruby").State == tasker.StepEnqueued })
	b.want("started", `SELECT standin.start_attempt($1, 1) ->> 'status'`, b.step(task, "ruby").StepID)
	b.finish()
	for _, name := range []string{"ruby", "go"} {
		if f := b.failure(task, name); f.Code != tasker.CodeAttemptTimeout || !strings.Contains(f.Message, "no result") {
			t.Errorf("%s: %+v", name, f)
		}
	}
	if ok, reason := b.report(`{"step_id": %d, "attempt": 1, "outcome": "success"}`, b.step(task, "ruby").StepID); ok {
		t.Errorf("a result after the timeout was accepted: %s", reason)
	}
}

// A lost job is found however many others wait in queues that nobody serves.
func TestALostJobIsFoundBehindALongQueue(t *testing.T) {
	b := setup(t)
	b.register(strings.Replace(oneRubyStep, "{name: only,", "{name: only, queue: slow,", 1))
	b.register(strings.NewReplacer("name: ruby", "name: fast").Replace(oneRubyStep))
	b.enqueueMany("ruby", `{}`, 6000)
	b.start(parkAfter(50 * time.Millisecond))
	b.until("the long queue is there", func() bool { return len(b.queued("slow")) == 6000 })
	b.enqueue("fast", `{}`)
	b.until("its job is in Redis", func() bool { return len(b.queued("default")) == 1 })
	client := b.redis()
	if err := client.Del(t.Context(), "queue:default").Err(); err != nil {
		t.Fatal(err)
	}
	b.until("it is there again", func() bool { return len(b.queued("default")) == 1 })
	if n := len(b.queued("slow")); n != 6000 {
		t.Errorf("the long queue has %d jobs, want 6000: some were pushed twice", n)
	}
}

// A worker that was declared dead and doesn't know it yet may fetch the job again
// that was rescued from it. It must not tick it off because it holds the task.
func TestAJobThatComesBackToADeadWorkerIsNotLost(t *testing.T) {
	b := setup(t)
	begun := make(chan int, 2)
	b.handlers.Register("test.runs", func(ctx context.Context, a *tasker.Attempt) (any, error) {
		begun <- a.Number
		if a.Number == 1 {
			<-ctx.Done()
		}
		return nil, ctx.Err()
	})
	b.register(`
name: runs
namespace_name: test
step_templates:
  - {name: only, handler: test.runs}`)
	b.start()
	b.enqueue("runs", `{}`)
	<-begun
	if err := b.store.StopWorker(t.Context(), int64(b.number(`SELECT worker_id FROM tasker.workers`))); err != nil {
		t.Fatal(err)
	}
	b.finish()
	b.want("complete", `SELECT state FROM tasker.tasks`)
	b.want("1", `SELECT count(*)::text FROM tasker.river_job`) // a sweep would have made another
}
