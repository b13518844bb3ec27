package worker_test

import (
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/store"
)

// A halt is a place right after one write of one transaction of a worker: a
// statement as the worker sends it, and the table, the kind of write and its
// number therein. Triggers, which only this test has, note the places that are
// come by, and stop whoever comes to one that is armed: between two writes of
// one transaction. What isn't committed is gone when the process is killed
// there; what is committed nobody has heard of.
const halts = `
CREATE SCHEMA halts;
CREATE TABLE halts.seen (place text);
CREATE TABLE halts.armed (place text);
CREATE FUNCTION halts.at() RETURNS trigger LANGUAGE plpgsql SET lock_timeout TO '0' AS $$
DECLARE
    client    text := current_setting('application_name');
    statement text := current_query();
    counter   text := 'halts.' || TG_TABLE_NAME || '_' || TG_OP;
    n         int;
    here      text;
BEGIN
    IF client !~ '^tasker' OR NOT EXISTS (SELECT FROM touched) THEN
        RETURN NULL;
    END IF;
    n := coalesce(nullif(current_setting(counter, true), ''), '0')::int + 1;
    PERFORM set_config(counter, n::text, true);
    here := format('%s: %s %s, %s', coalesce(substring(statement from '-- name: (\w+)'), substring(statement from 'tasker\.(\w+)\s*\('), statement),
                   TG_OP, TG_TABLE_NAME, n);
    INSERT INTO halts.seen VALUES (here);
    IF EXISTS (SELECT FROM halts.armed a WHERE a.place = here) THEN
        PERFORM pg_advisory_xact_lock_shared(77);
    END IF;
    RETURN NULL;
END $$;
DO $$
DECLARE
    at text;
BEGIN
    FOREACH at IN ARRAY ARRAY['tasks', 'steps', 'events', 'dispatches', 'river_job', 'workers', 'gate_slots', 'gate_waiters'] LOOP
        EXECUTE format('CREATE TRIGGER zz_halt_i AFTER INSERT ON tasker.%I REFERENCING NEW TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION halts.at()', at);
        EXECUTE format('CREATE TRIGGER zz_halt_u AFTER UPDATE ON tasker.%I REFERENCING NEW TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION halts.at()', at);
        EXECUTE format('CREATE TRIGGER zz_halt_d AFTER DELETE ON tasker.%I REFERENCING OLD TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION halts.at()', at);
    END LOOP;
END $$;`

// What comes by all of them: retries that are waited for and that give the task
// up, a branch that fails for good, a limit, Ruby steps, and waits that end in
// another worker.
const halted = `
name: halted
namespace_name: test
step_templates:
  - {name: a, handler: tasker.echo}
  - {name: soon, handler: tasker.fail, handler_config: {times: 1}, depends_on_step: a, retry: {base_seconds: 0.02, jitter: 0}}
  - {name: later, handler: tasker.fail, handler_config: {times: 1}, depends_on_step: a, retry: {base_seconds: 1.2, jitter: 0}}
  - {name: limited, handler: tasker.sleep, handler_config: {seconds: 0.01}, depends_on_step: a, limit_key: bank}
  - {name: ruby, handler_class: Work, handler_config: {seconds: 0.05}, depends_on_step: a}
  - {name: flaky, handler_class: Fail, handler_config: {times: 1}, depends_on_step: a, retry: {base_seconds: 0.02, jitter: 0}}
  - {name: z, handler: tasker.echo, depends_on_steps: [soon, later, limited, ruby, flaky]}`

const haltedForGood = `
name: halted_for_good
namespace_name: test
step_templates:
  - {name: a, handler: tasker.fail, handler_config: {permanent: true}}
  - {name: b, handler: tasker.echo, depends_on_step: a}`

// The places that have to be come by; there are more, which depend on who is
// first.
var mustHalt = []string{
	"claim_tasks: UPDATE tasks, 1", "claim_tasks: INSERT events, 1",
	"write_batch: UPDATE tasks, 1", "write_batch: UPDATE steps, 1", "write_batch: INSERT events, 1",
	"write_batch: INSERT dispatches, 1", "write_batch: DELETE dispatches, 1", "write_batch: UPDATE dispatches, 1", "write_batch: INSERT river_job, 1",
	"JobGetAvailable: UPDATE river_job, 1", "JobSetStateIfRunningMany: UPDATE river_job, 1",
	"start_attempts: UPDATE steps, 1", "report_results: UPDATE dispatches, 1", "report_results: UPDATE steps, 1", "report_results: INSERT events, 1",
}

// haltable prepares a bundle that has a Sidekiq for it, and returns the places
// that all of the work comes by.
func (b *bundle) haltable() []string {
	b.Helper()
	b.exec(halts)
	b.registerHalted()
	for range 2 { // the second time after a death
		w := b.haltingWorker()
		b.enqueueHalted(10)
		b.finish()
		w.kill(b)
	}
	places := b.seen()
	for _, place := range mustHalt {
		if !slices.Contains(places, place) {
			b.Errorf("the work doesn't come by %q, but by\n%s", place, strings.Join(places, "\n"))
		}
	}
	return places
}

func (b *bundle) registerHalted() {
	b.Helper()
	b.workerEnv = append(b.workerEnv, "TASKER_ORCHESTRATOR_MAX_LOSSES=1000", "TASKER_WORKER_HOLD_FOR=20ms")
	b.register(halted)
	b.register(haltedForGood)
	b.limit("key", "bank", store.Limit{MaxAttempts: new(1)})
}

// hasty makes a worker give tasks up after a moment, and be known to be dead
// after a second.
var hasty = []string{"--lease", "1s", "--park-after", "20ms"}

func (b *bundle) haltingWorker() *child {
	b.Helper()
	return b.launch(hasty...)
}

func (b *bundle) enqueueHalted(n int) {
	b.enqueueMany("halted", `{}`, n)
	b.enqueueMany("halted_for_good", `{}`, 1)
}

// arm stops whoever comes to the place, until it is released.
func (b *bundle) arm(place string) (release func()) {
	b.Helper()
	guard, err := pgx.Connect(b.Context(), b.url)
	b.must(err)
	b.exec(`INSERT INTO halts.armed VALUES ($1)`, place)
	_, err = guard.Exec(b.Context(), `SELECT pg_advisory_lock(77)`)
	b.must(err)
	return func() {
		b.Helper()
		b.exec(`DELETE FROM halts.armed`)
		_ = guard.Close(b.Context()) // its lock goes with it, or went with the server
	}
}

// halt returns those who have come to the place, and lets them go on with release.
func (b *bundle) halt(place string) (pids []int32, client string, release func()) {
	b.Helper()
	release = b.arm(place)
	wait := 2 * time.Second // where it depends on who is first
	if slices.Contains(mustHalt, place) {
		wait = patience
	}
	for deadline := time.Now().Add(wait); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) { // only pg_locks can tell
		err := b.pool.QueryRow(b.Context(), `SELECT array_agg(a.pid), coalesce(min(a.application_name), '') FROM pg_locks l JOIN pg_stat_activity a USING (pid)
			WHERE l.locktype = 'advisory' AND l.objid = 77 AND NOT l.granted AND a.datname = current_database()`).Scan(&pids, &client)
		b.must(err)
		if len(pids) > 0 {
			return pids, client, release
		}
		if b.number(`SELECT count(*) FROM tasker.tasks WHERE state IN ('pending', 'in_progress')`) == 0 {
			b.enqueueHalted(2)
		}
	}
	return nil, "", release
}

func (b *bundle) checkHalted() {
	b.Helper()
	b.finish()
	b.want("halted complete, halted_for_good error", `SELECT string_agg(DISTINCT concat_ws(' ', name, state), ', ' ORDER BY concat_ws(' ', name, state)) FROM tasker.tasks`)
	b.noPlaceIsLost()
	b.checkHistory()
}

// Guarantees 2, 3, 6 and 7: whichever process dies between any two writes of any
// of its transactions, what it has written there is rolled back, and the work
// goes on.
func TestAProcessThatDiesBetweenAnyTwoWritesLosesNothing(t *testing.T) {
	const shares = 2 // side by side, as most of the time is waiting
	for share := range shares {
		t.Run(fmt.Sprint(share), func(t *testing.T) {
			b := setup(t)
			ruby := b.sidekiq()
			var mine []string
			for _, place := range b.haltable() {
				hash := fnv.New32a()
				_, _ = hash.Write([]byte(place)) // never fails
				if int(hash.Sum32()%shares) == share {
					mine = append(mine, place)
				}
			}
			b.dieAt(mine, ruby, func(backends []int32) {
				b.exec(`SELECT pg_terminate_backend(pid, 10000) FROM unnest($1::int[]) AS pid`, backends)
			})
			b.checkHalted()
		})
	}
}

// The same when Postgres does not notice, and commits: nobody hears of it.
func TestAProcessThatDiesBeforeItHearsOfItsCommitLosesNothing(t *testing.T) {
	b := setup(t)
	ruby := b.sidekiq()
	var places []string
	for _, place := range b.haltable() { // one of each statement
		same := func(other string) bool { return strings.HasPrefix(other, strings.SplitAfter(place, ":")[0]) }
		if !slices.ContainsFunc(places, same) {
			places = append(places, place)
		}
	}
	b.dieAt(places, ruby, func([]int32) {})
	b.checkHalted()
}

// dieAt kills whoever comes to each of the places, starts another in its stead, and
// leaves a worker and a Sidekiq running.
func (b *bundle) dieAt(places []string, ruby *child, then func(backends []int32)) {
	b.Helper()
	worker := b.haltingWorker()
	for _, place := range places {
		backends, client, release := b.halt(place)
		switch {
		case len(backends) == 0 && slices.Contains(mustHalt, place):
			b.Errorf("nobody came to %q", place)
		case len(backends) == 0:
			b.Logf("nobody came to %q", place)
		case client == "tasker_core":
			ruby.kill(b)
			then(backends)
		default:
			worker.kill(b)
			then(backends)
		}
		release()
		if ruby.cmd.ProcessState != nil {
			ruby = b.sidekiq()
		}
		if worker.cmd.ProcessState != nil {
			worker = b.haltingWorker()
		}
	}
}

// Guarantee 2: the same with Postgres itself, whose log ends in the middle of the
// transaction.
func TestAPostgresThatDiesBetweenAnyTwoWritesLosesNothing(t *testing.T) {
	b, postgres := setupOwnPostgres(t)
	b.sidekiq()
	places := b.haltable()
	b.haltingWorker()
	for _, place := range places {
		if !strings.HasPrefix(place, "write_batch") && !strings.HasPrefix(place, "claim_tasks") {
			continue
		}
		pids, _, release := b.halt(place)
		if len(pids) == 0 {
			if slices.Contains(mustHalt, place) {
				t.Errorf("nobody came to %q", place)
			}
			release()
			continue
		}
		b.must(postgres.StopImmediate(t.Context()))
		b.must(postgres.Restart(t.Context()))
		b.pool.Reset()
		b.until("Postgres answers", func() bool { return b.pool.Ping(t.Context()) == nil })
		release()
	}
	b.checkHalted()
}
