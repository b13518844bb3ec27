package worker_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/migrations"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/testenv"
	"github.com/taskerhq/tasker/worker"
)

// stranger connects as a login without any grant, which every Postgres lets
// send notifications.
func (b *bundle) stranger() *pgx.Conn {
	b.Helper()
	conn, err := pgx.Connect(b.Context(), b.newLogin(fmt.Sprintf("test_stranger_%d", rand.Uint64()), ""))
	b.must(err)
	b.Cleanup(func() { _ = conn.Close(b.Context()) }) // the test is over
	return conn
}

// notify sends a notification as the login would.
func (b *bundle) notify(conn *pgx.Conn, channel, payload string) {
	b.Helper()
	if _, err := conn.Exec(b.Context(), `SELECT pg_notify($1, $2)`, channel, payload); err != nil {
		b.Fatal(err)
	}
}

const payment = `
namespace_name: test
name: payment
version: 1.0.0
step_templates:
  - {name: fraud_check, handler_class: Echo}
  - {name: charge, handler_class: Echo, depends_on_step: fraud_check}
  - {name: ship, handler: tasker.echo, depends_on_steps: [fraud_check, charge]}
`

// Steps that never ran are not complete because a notification says so.
func TestAForgedNotificationCompletesNothing(t *testing.T) {
	b := setup(t)
	b.register(payment)
	b.start()
	task := b.enqueue("payment", `{}`)
	b.until("the first step is at Sidekiq", func() bool { return b.step(task, "fraud_check").State == "enqueued" })
	worker := b.number(`SELECT owner FROM tasker.tasks WHERE task_id = $1`, task)
	stranger := b.stranger()
	channel := fmt.Sprint("tasker.worker_", worker)
	check, charge, ship := b.step(task, "fraud_check").StepID, b.step(task, "charge").StepID, b.step(task, "ship").StepID
	// Each kind that the code understands, with each list that means something to one of them.
	for _, kind := range store.NotificationKinds() {
		b.notify(stranger, channel, kind)
		b.notify(stranger, channel, fmt.Sprint(kind, task))
		for _, step := range []int64{check, charge, ship} {
			b.notify(stranger, channel, fmt.Sprint(kind, step))
			for _, attempt := range []int{0, 1, 2} {
				b.notify(stranger, channel, fmt.Sprintf("%s%d.%d.%d", kind, step, attempt, task))
				b.notify(stranger, channel, fmt.Sprintf("%s%d.%d.%d.0", kind, step, attempt, task))
				b.notify(stranger, channel, fmt.Sprintf("%s%d.%d.%d.%d", kind, step, attempt, task, rand.Int64N(1<<48)))
			}
		}
	}
	for _, payload := range []string{"", "{", `{"queue": "default"}`, `{"task_id": -1}`, strings.Repeat("1,", 3999), "d1.1", "d....", "\x01"} {
		b.notify(stranger, channel, payload)
		b.notify(stranger, "tasker.river_insert", payload)
	}
	b.notify(stranger, "tasker.river_insert", fmt.Sprintf(`{"queue": "default", "task_id": %d, "job_id": 1}`, task))
	b.sidekiq()
	b.finish()
	b.want("complete", `SELECT state FROM tasker.tasks WHERE task_id = $1`, task)
	// Each step starts after those that it depends on, and has their results.
	b.want("step.completed fraud_check, step.handle charge, step.completed charge, step.handle ship, step.completed ship",
		`SELECT string_agg(e.name || ' ' || s.name, ', ' ORDER BY e.event_id) FROM tasker.events e JOIN tasker.steps s USING (step_id)
		WHERE e.task_id = $1 AND (e.name = 'step.completed' OR e.name = 'step.handle' AND s.name <> 'fraud_check')`, task)
	b.want("true", `SELECT (result -> 'dependencies' -> 'charge' <> 'null')::text FROM tasker.steps WHERE step_id = $1`, ship)
	b.healthy()
}

// A task does not start before its run_at, whatever a notification says, and
// however early its River job comes.
func TestNothingStartsATaskBeforeItsTime(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	b.start()
	later := func(in string) int64 {
		var id int64
		b.must(b.pool.QueryRow(t.Context(), `INSERT INTO tasker.tasks (namespace, name, run_at) VALUES ('test', 'one', now() + $1::text::interval) RETURNING task_id`, in).Scan(&id))
		return id
	}
	told, early := later("1 day"), later("3 seconds")
	stranger := b.stranger()
	b.notify(stranger, "tasker.river_insert", fmt.Sprintf(`{"queue": "x", "task_id": %d, "job_id": 1}`, told))
	b.exec(`UPDATE tasker.river_job SET state = 'available', scheduled_at = now() WHERE (args ->> 'task_id')::bigint = $1`, early)
	b.notify(stranger, "tasker.river_insert", `{"queue": "default"}`)
	for range 3 { // told of on the same connection, later
		b.enqueue("one", `{}`)
		b.until("it is complete", func() bool {
			return b.number(`SELECT count(*) FROM tasker.tasks WHERE state = 'in_progress' OR state = 'pending' AND run_at IS NULL`) == 0
		})
	}
	b.want("pending", `SELECT state FROM tasker.tasks WHERE task_id = $1`, told)
	b.until("the other one is complete", func() bool {
		return b.number(`SELECT count(*) FROM tasker.tasks WHERE task_id = $1 AND state = 'complete'`, early) == 1
	})
	b.want("true", `SELECT (started_at >= run_at)::text FROM tasker.tasks WHERE task_id = $1`, early)
	b.want("pending", `SELECT state FROM tasker.tasks WHERE task_id = $1`, told)
}

// A task whose deadline has passed is not claimed: nothing starts in it any more.
func TestATaskPastItsDeadlineIsNotClaimed(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	task := b.enqueue("one", `{}`)
	b.exec(`UPDATE tasker.tasks SET deadline = now() - interval '1 second' WHERE task_id = $1`, task)
	worker, err := b.store.RegisterWorker(t.Context(), "w", "c", time.Minute, nil)
	b.must(err)
	claimed, err := b.store.NewClaimer(t.Context(), worker).Claim(t.Context(), task)
	if claimed != nil || err != nil {
		t.Errorf("got %+v, %v, want nothing to own", claimed, err)
	}
}

// Whatever a loop believes, its write is refused when it claims a step before its
// dependencies or ends a task before its steps.
func TestAWriteLooksAtDependenciesAndSteps(t *testing.T) {
	b := setup(t)
	b.register(payment)
	ctx := t.Context()
	worker, err := b.store.RegisterWorker(ctx, "w", "c", time.Minute, nil)
	b.must(err)
	task := b.enqueue("payment", `{}`)
	claimed, err := b.store.NewClaimer(ctx, worker).Claim(ctx, task)
	b.must(err)
	writer := b.store.NewWriter(ctx, worker)
	charge := store.StepWrite{
		Step: claimed.Steps[1].StepID, Was: tasker.StepPending, State: tasker.StepEnqueued, Attempt: 1, Queue: "default",
	}
	for what, unit := range map[string]*store.Unit{
		"a claim before its dependencies":  {Needs: []int64{claimed.Steps[0].StepID}, Steps: []store.StepWrite{charge}},
		"a task complete before its steps": {State: tasker.TaskComplete, Release: true},
	} {
		unit.Task, unit.Epoch = task, claimed.Epoch
		if err := writer.Write(ctx, unit); !errors.Is(err, store.ErrStale) {
			t.Errorf("%s: got %v, want that it is refused", what, err)
		}
	}
	b.must(writer.Write(ctx, &store.Unit{Task: task, Epoch: claimed.Epoch, Steps: []store.StepWrite{{
		Step: claimed.Steps[0].StepID, Was: tasker.StepPending, State: tasker.StepEnqueued, Attempt: 1, Queue: "default",
	}}}))
	failed := &store.Unit{Task: task, Epoch: claimed.Epoch, State: tasker.TaskError, Release: true}
	if err := writer.Write(ctx, failed); !errors.Is(err, store.ErrStale) {
		t.Errorf("a failed task with a step at Sidekiq: got %v, want that it is refused", err)
	}
	b.want("in_progress", `SELECT state FROM tasker.tasks WHERE task_id = $1`, task)
}

// login connects with the rights of a role alone.
func (b *bundle) login(role string) *pgx.Conn {
	b.Helper()
	conn, err := pgx.Connect(b.Context(), b.user(role))
	b.must(err)
	b.Cleanup(func() { _ = conn.Close(b.Context()) }) // the test is over
	return conn
}

// What a reader of events asks for never fails another's write.
func TestAReaderOfEventsCanNotFailAWriter(t *testing.T) {
	b := setup(t)
	b.must(migrations.Roles(t.Context(), b.pool))
	b.register(oneGoStep)
	app := b.login("tasker_app")
	long := strings.Repeat("x", 64)
	for _, call := range []string{
		`SELECT tasker.fall_asleep('x', '', '{%}', true)`,
		`SELECT tasker.fall_asleep('x', 'c', '{"a\\"}', true)`,
		`SELECT tasker.fall_asleep('x', 'c', ARRAY[NULL, 'a\'], true)`,
		`SELECT tasker.fall_asleep('x', '` + long + `', '{%}', true)`,
		`SELECT tasker.fall_asleep('x', 'tasker.worker_1', '{%}', true)`,
		`SELECT tasker.fall_asleep(repeat('x', 8000), 'c', '{%}', true)`,
		`SELECT tasker.read_events(tasker.event_cursor_since(), '{*}', 10, 'r', '` + long + `')`,
		`SELECT tasker.read_events(tasker.event_cursor_since(), '{*}', 10, 'r', '')`,
		`SELECT tasker.read_events(tasker.event_cursor_since(), '{*}', 10, repeat('x', 8000), 'c')`,
		`SELECT tasker.next_events('nobody', 'h', 10, NULL, '')`,
		`SELECT tasker.await_task(1, '')`,
		`SELECT tasker.await_task(1, '` + long + `')`,
		`SELECT tasker.renew_waiters('` + long + `', '{1}')`,
	} {
		if _, err := app.Exec(t.Context(), call); err == nil {
			t.Errorf("%s was not refused", call)
		}
		if _, err := b.pool.Exec(t.Context(), `INSERT INTO tasker.tasks (namespace, name) VALUES ('test', 'one')`); err != nil {
			t.Errorf("after %s an app can't enqueue: %v", call, err)
		}
	}
	// Whatever stands in the tables, past the functions.
	for _, row := range []string{
		`INSERT INTO tasker.event_sleepers VALUES ('x', '', '{%}', 'infinity')`,
		`INSERT INTO tasker.event_sleepers VALUES ('x', 'c', '{"a\\"}', 'infinity')`,
		`INSERT INTO tasker.task_waiters VALUES (1, '', 'infinity')`,
	} {
		if _, err := b.pool.Exec(t.Context(), row); err == nil {
			t.Errorf("%s was not refused", row)
		}
	}
}

// The template of a task is the one that it names, whatever the session says.
func TestNoSettingChoosesTheTemplate(t *testing.T) {
	b := setup(t)
	b.must(migrations.Roles(t.Context(), b.pool))
	b.register(oneGoStep)
	b.register(payment)
	other := b.number(`SELECT template_id FROM tasker.task_templates WHERE name = 'payment'`)
	app := b.login("tasker_app")
	for _, setting := range []string{fmt.Sprintf("'test','one',NULL:%d:9.9.9", other), "'test','one',NULL:999:9.9.9", "'test','one',NULL:x:y"} {
		if _, err := app.Exec(t.Context(), `SELECT set_config('tasker.template', $1, false)`, setting); err != nil {
			t.Fatal(err)
		}
		var of string
		if err := app.QueryRow(t.Context(), `WITH n AS (INSERT INTO tasker.tasks (namespace, name) VALUES ('test', 'one') RETURNING template_id, version)
			SELECT t.name || ' ' || n.version FROM n LEFT JOIN tasker.task_templates t USING (template_id)`).Scan(&of); err != nil || of != "one 1.0.0" {
			t.Errorf("with the setting %s the task is of %q, %v", setting, of, err)
		}
	}
}

// planted are functions and operators that fit better than Postgres' own, in a
// schema that every session looks into. Each of them raises.
const planted = `
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = public', current_database()); END $$;
CREATE FUNCTION public.caught() RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'a planted function runs as %', current_user; END $$;
CREATE FUNCTION public.unnest(bigint[]) RETURNS SETOF bigint LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught(); END $$;
CREATE FUNCTION public.unnest(integer[]) RETURNS SETOF integer LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught(); END $$;
CREATE FUNCTION public.unnest(text[]) RETURNS SETOF text LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught(); END $$;
CREATE FUNCTION public.cardinality(bigint[]) RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught(); RETURN 0; END $$;
CREATE FUNCTION public.cardinality(text[]) RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught(); RETURN 0; END $$;
CREATE FUNCTION public.format(text, bigint) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught(); RETURN ''; END $$;
CREATE FUNCTION public.format(text, text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught(); RETURN ''; END $$;
CREATE FUNCTION public.jsonb_build_object(text, bigint) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught(); RETURN '{}'; END $$;
CREATE FUNCTION public.add(bigint[], bigint) RETURNS bigint[] LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught(); RETURN $1; END $$;
CREATE AGGREGATE public.array_agg(bigint) (SFUNC = public.add, STYPE = bigint[]);
CREATE FUNCTION public.taken(text[], text) RETURNS text[] LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught(); RETURN $1; END $$;
CREATE AGGREGATE public.array_agg(text) (SFUNC = public.taken, STYPE = text[]);
`

// Functions that another role has planted don't run as the worker, the operator,
// the owner, or in an app's INSERT.
func TestPlantedFunctionsDoNotRun(t *testing.T) {
	b := setup(t)
	b.must(migrations.Roles(t.Context(), b.pool))
	b.register(oneGoStep)
	b.register(oneRubyStep)
	b.exec(planted)
	b.start()
	b.sidekiq()
	app := b.login("tasker_app")
	for range 3 {
		for _, name := range []string{"one", "ruby"} {
			_, err := app.Exec(t.Context(), `SELECT tasker.enqueue_task('test', $1, '{}')`, name)
			b.must(err)
			_, err = app.Exec(t.Context(), `INSERT INTO tasker.tasks (namespace, name) SELECT 'test', $1 FROM generate_series(1, 2)`, name)
			b.must(err)
		}
	}
	b.finish()
	b.want("18", `SELECT count(*)::text FROM tasker.tasks WHERE state = 'complete'`)
	for _, args := range [][]string{
		{"task", "list"}, {"task", "show", "1"}, {"explain", "1"}, {"gate", "list"}, {"dead-letter", "list"}, {"analytics", "performance"},
		{"analytics", "bottlenecks"}, {"analytics", "task", "1"}, {"doctor"}, {"health"}, {"template", "list"}, {"events", "tail", "--since", "1h"},
	} {
		out, err := exec.Command(testenv.TaskerBinary(t), append(args, "--database-url", b.url, "--redis-url", b.redisURL)...).CombinedOutput()
		if strings.Contains(string(out), "planted") {
			t.Errorf("tasker %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	b.healthy()
}

// Every function looks names up in pg_catalog alone.
func TestEveryFunctionHasItsSearchPath(t *testing.T) {
	b := setup(t)
	b.want("", `SELECT coalesce(string_agg(p.oid::regprocedure::text, ', '), '') FROM pg_proc p
		WHERE p.pronamespace = 'tasker'::regnamespace AND p.prosqlbody IS NULL
		  AND 'search_path=pg_catalog, pg_temp' <> ALL (coalesce(p.proconfig, '{}'))`)
}

// Rights are part of each migration, forth and back.
func TestRightsSurviveMigrations(t *testing.T) {
	b := setup(t)
	ctx := t.Context()
	b.must(migrations.Roles(ctx, b.pool))
	const rights = `SELECT md5(string_agg(format('%s %s %s', p.oid::regprocedure, p.proacl, p.prosecdef), E'\n' ORDER BY p.oid::regprocedure::text))
		FROM pg_proc p WHERE p.pronamespace = 'tasker'::regnamespace`
	before := b.text(rights)
	_, err := migrations.Down(ctx, b.pool, 3, false)
	b.must(err)
	b.want("", `SELECT coalesce(string_agg(p.oid::regprocedure::text, ', '), '') FROM pg_proc p WHERE p.pronamespace = 'tasker'::regnamespace
		AND (has_function_privilege('public', p.oid, 'EXECUTE') OR NOT has_function_privilege('tasker_worker', p.oid, 'EXECUTE'))`)
	b.must(migrations.Up(ctx, b.pool))
	b.want(before, rights)
}

// Advisory locks are for any login to take: nothing here waits for one.
func TestLocksOfALoginWithoutRightsHoldNothingUp(t *testing.T) {
	b := setup(t)
	b.must(migrations.Roles(t.Context(), b.pool))
	b.register(oneGoStep)
	stranger, reader := b.stranger(), b.login("tasker_reader")
	for _, sql := range []string{
		`SELECT pg_advisory_lock(1953721202, n) FROM generate_series(-5, 50) n`,
		`SELECT pg_advisory_lock(x'7461736b65726d67'::bigint)`,
	} {
		_, err := stranger.Exec(t.Context(), sql)
		b.must(err)
	}
	for _, sql := range []string{
		`BEGIN; SELECT FROM tasker.worker_fences FOR UPDATE`, `BEGIN; SELECT FROM tasker.worker_fences FOR KEY SHARE`,
		`BEGIN; SELECT FROM tasker.duties FOR UPDATE`, `BEGIN; LOCK TABLE tasker.worker_fences`, `BEGIN; LOCK TABLE tasker.schema_migrations IN SHARE MODE`,
		`BEGIN; SELECT FROM tasker.workers FOR SHARE`, `BEGIN; SELECT FROM tasker.tasks FOR SHARE`,
	} {
		for who, conn := range map[string]*pgx.Conn{"stranger": stranger, "reader": reader} {
			_, err := conn.Exec(t.Context(), sql)
			var refused *pgconn.PgError
			if !errors.As(err, &refused) || refused.Code != "42501" {
				t.Errorf("%s: %s: got %v, want that it may not", who, sql, err)
			}
			_, err = conn.Exec(t.Context(), `ROLLBACK`)
			b.must(err)
		}
	}
	_, err := migrations.Down(t.Context(), b.pool, 1, false)
	b.must(err)
	b.must(migrations.Up(t.Context(), b.pool))
	gone, err := b.store.RegisterWorker(t.Context(), "gone", "gone", time.Second, nil)
	b.must(err)
	task := b.enqueue("one", `{}`)
	if claimed, err := b.store.NewClaimer(t.Context(), gone).Claim(t.Context(), task); err != nil || claimed == nil {
		t.Fatalf("claimed %v, %v", claimed, err)
	}
	stop := b.start(func(c *worker.Config) { c.Lease = time.Second })
	b.enqueue("one", `{}`)
	b.finish() // the task of the worker that is gone, too
	stop()
	b.want("dead stopped", `SELECT string_agg(state, ' ' ORDER BY worker_id) FROM tasker.workers`)
	b.want("0", `SELECT count(*)::text FROM tasker.worker_fences`)
}

// What an app may call does not let it act for another's process: it needs the ticket
// of the attempt's job to start it, the secret of the start to report, and its own
// secret to speak for a process.
func TestAnAttemptBelongsToTheProcessThatStartedIt(t *testing.T) {
	b := setup(t)
	b.must(migrations.Roles(t.Context(), b.pool))
	b.register(payment)
	b.start()
	task := b.enqueue("payment", `{}`)
	b.until("the first step is at Sidekiq", func() bool { return b.step(task, "fraud_check").State == "enqueued" && len(b.queued("default")) == 1 })
	check := b.step(task, "fraud_check").StepID
	app := b.login("tasker_app")
	ask := func(sql string, args ...any) string {
		t.Helper()
		var answer string
		if err := app.QueryRow(t.Context(), sql, args...).Scan(&answer); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		return answer
	}
	refused := func(what, want, got string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: got %s, want %s", what, got, want)
		}
	}
	const report = `SELECT accepted::text FROM tasker.report_results(jsonb_build_array(jsonb_build_object('step_id', $1::bigint, 'attempt', 1,
		'outcome', $2::text, 'result', 'null'::jsonb, 'failure', '{"class": "X"}'::jsonb) || $3::jsonb))`

	for _, outcome := range []string{"success", "failure", "lost"} {
		refused("a report of what was not started: "+outcome, "false", ask(report, check, outcome, `{}`))
	}
	refused("a start without a ticket", "refused", ask(`SELECT tasker.start_attempt($1, 1) ->> 'status'`, check))
	refused("a start with a wrong ticket", "refused", ask(`SELECT tasker.start_attempt($1, 1, NULL, 1) ->> 'status'`, check))
	var job struct {
		Args []struct {
			Ticket int64 `json:"ticket"`
		} `json:"args"`
	}
	b.must(json.Unmarshal([]byte(b.queued("default")[0]), &job))
	ticket := job.Args[0].Ticket
	other := ask(`SELECT tasker.register_process('other', '{"queues": ["pci"]}', 5)::text`)
	refused("a start by a process that does not take the queue", "refused", ask(`SELECT tasker.start_attempt($1, 1, $2::text::bigint, $3) ->> 'status'`, check, other, ticket))

	mine := ask(`SELECT tasker.register_process('mine', '{"queues": ["default"]}', 5)::text`)
	var secret string
	b.must(app.QueryRow(t.Context(), `SELECT tasker.start_attempt($1, 1, $2::text::bigint, $3) ->> 'secret'`, check, mine, ticket).Scan(&secret))
	for _, outcome := range []string{"success", "failure", "lost"} {
		for _, shown := range []string{`{}`, `{"secret": 1}`, fmt.Sprintf(`{"ticket": %d}`, ticket)} {
			refused("a report without the secret: "+outcome, "false", ask(report, check, outcome, shown))
		}
	}
	refused("a heartbeat without the secret", "false", ask(`SELECT tasker.heartbeat($1, 1, '{"rows": 1}')::text`, check))
	refused("a heartbeat with a wrong secret", "false", ask(`SELECT tasker.heartbeat($1, 1, '{"rows": 1}', 1)::text`, check))
	b.want("true", `SELECT (progress IS NULL)::text FROM tasker.steps WHERE step_id = $1`, check)
	refused("another start", "refused", ask(`SELECT tasker.start_attempt($1, 1, NULL, $2) ->> 'status'`, check, ticket))
	refused("a beat for another process", "false", ask(`SELECT tasker.process_beat($1::text::bigint, '{}', 6)::text`, mine))
	refused("a beat without a secret", "false", ask(`SELECT tasker.process_beat($1::text::bigint)::text`, mine))
	for _, sql := range []string{`SELECT count(tasker.process_stopped($1::text::bigint))::text`, `SELECT count(tasker.process_stopped($1::text::bigint, 6))::text`} {
		_ = ask(sql, mine)
	}
	b.want("true", `SELECT (stopped_at IS NULL)::text FROM tasker.processes WHERE process_id = $1::text::bigint`, mine)
	b.want("in_progress", `SELECT state FROM tasker.steps WHERE step_id = $1`, check)

	// What has to be shown is not to be read, and progress is not written past the heartbeat.
	for _, sql := range []string{
		`SELECT ticket FROM tasker.dispatches`, `SELECT secret FROM tasker.dispatches`, `SELECT * FROM tasker.dispatches`,
		`SELECT secret FROM tasker.processes`, `SELECT tasker.record_progress(1, '{1}', '{1}', '{"{}"}')`,
	} {
		for _, role := range []string{"tasker_app", "tasker_reader", "tasker_operator"} {
			_, err := b.login(role).Exec(t.Context(), sql)
			var refused *pgconn.PgError
			if !errors.As(err, &refused) || refused.Code != "42501" {
				t.Errorf("%s: %s: got %v, want that it may not", role, sql, err)
			}
		}
	}
	if got := ask(`SELECT tasker.heartbeat($1, 1, '{"rows": 1}', $2::text::bigint)::text`, check, secret); got != "true" {
		t.Errorf("a heartbeat with the secret: %s", got)
	}
	if got := ask(report, check, "success", `{"secret": `+secret+`}`); got != "true" {
		t.Errorf("a report with the secret: %s", got)
	}
	b.until("the next step is at Sidekiq", func() bool { return b.step(task, "charge").State == "enqueued" })
}

// The partitions that functions drop with the owner's rights are partitions of events.
func TestNoWorkerNamesATableToDrop(t *testing.T) {
	b := setup(t)
	b.must(migrations.Roles(t.Context(), b.pool))
	worker := b.login("tasker_worker")
	for _, sql := range []string{
		`INSERT INTO tasker.event_days (partition, since, until) VALUES ('tasks', '2020-01-01', '2020-01-02')`,
		`UPDATE tasker.event_days SET partition = 'events_default'`,
	} {
		if _, err := worker.Exec(t.Context(), sql); err == nil {
			t.Errorf("%s was not refused", sql)
		}
	}
}
