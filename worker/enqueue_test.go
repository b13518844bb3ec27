package worker_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/jobs"
	"github.com/taskerhq/tasker/migrations"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/template"
	"github.com/taskerhq/tasker/worker"
)

const oneGoStep = `
name: one
namespace_name: test
version: 1.0.0
step_templates: [{name: only, handler: tasker.echo, handler_config: {answer: 42}}]`

const oneRubyStep = `
name: ruby
namespace_name: test
version: 1.0.0
step_templates: [{name: only, handler_class: Echo, handler_config: {answer: 42}}]`

// Guarantee 1: a task starts if and only if the inserting transaction commits.
func TestARolledBackInsertLeavesNothing(t *testing.T) {
	b := setup(t)
	b.register(oneRubyStep)
	b.start()

	tx, err := b.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var id int64
	if err := tx.QueryRow(t.Context(), `INSERT INTO tasker.tasks (namespace, name, context) VALUES ('test', 'ruby', '{"n": 1}') RETURNING task_id`).Scan(&id); err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}

	// A task that is committed afterwards, and seen in Redis, shows that the
	// worker was awake and would have taken the other.
	after := b.enqueue("ruby", `{"n": 2}`)
	b.until("the committed task's job is in Redis", func() bool { return len(b.queued("default")) > 0 })
	for _, payload := range b.queued("default") {
		if !strings.Contains(payload, `"task_id":`+b.text(`SELECT $1::bigint::text`, after)) {
			t.Errorf("a job of the rolled-back task is in Redis: %s", payload)
		}
	}
	for _, table := range []string{"tasks", "steps", "events", "dispatches"} {
		if n := b.number(`SELECT count(*) FROM tasker.`+table+` WHERE task_id = $1`, id); n != 0 {
			t.Errorf("tasker.%s has %d rows of the rolled-back task", table, n)
		}
	}
	if n := b.number(`SELECT count(*) FROM tasker.river_job WHERE (args ->> 'task_id')::bigint = $1`, id); n != 0 {
		t.Errorf("river_job has %d jobs of the rolled-back task", n)
	}
}

func TestAnInsertWakesAWorkerAndRunsToCompletion(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	b.start()
	task := b.enqueue("one", `{}`)
	b.finish()
	b.want("complete", `SELECT state FROM tasker.tasks WHERE task_id = $1`, task)
	b.want(`{"answer": 42}`, `SELECT result::text FROM tasker.steps WHERE task_id = $1`, task)
	b.want("task.initialize_requested task.start_requested step.handle step.completed task.completed",
		`SELECT string_agg(name, ' ' ORDER BY event_id) FROM tasker.events WHERE task_id = $1`, task)
}

func TestManyRowsInOneInsertAreExpandedTogether(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	ids := b.enqueueMany("one", `{}`, 300)
	if n := b.number(`SELECT count(*) FROM tasker.steps WHERE task_id = ANY ($1)`, ids); n != 300 {
		t.Errorf("300 tasks of one step have %d steps", n)
	}
	if n := b.number(`SELECT count(DISTINCT args ->> 'task_id') FROM tasker.river_job`); n != 300 {
		t.Errorf("300 tasks have %d River jobs", n)
	}
	b.start()
	b.finish()
	b.want("300", `SELECT count(*)::text FROM tasker.tasks WHERE state = 'complete'`)
}

func TestBadInsertsAreRefusedWithAMessageThatSaysWhatToMend(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	b.register(strings.Replace(oneGoStep, "1.0.0", "1.10.0", 1))
	b.register(strings.Replace(oneGoStep, "1.0.0", "1.9.0", 1))
	for _, c := range []struct{ name, sql, want string }{
		{"unknown template", `INSERT INTO tasker.tasks (namespace, name) VALUES ('test', 'two')`, "there is no template test/two; registered are: test/one"},
		{"unknown version", `INSERT INTO tasker.tasks (namespace, name, version) VALUES ('test', 'one', '2.0.0')`, "template test/one has no version 2.0.0; it has: 1.10.0, 1.9.0, 1.0.0"},
		{"unknown template by function", `SELECT tasker.enqueue_task('test', 'two')`, "there is no template test/two; registered are: test/one"},
		{"context is an array", `INSERT INTO tasker.tasks (namespace, name, context) VALUES ('test', 'one', '[1]')`, "the context of a task must be a JSON object, not array"},
		{"context is a string", `SELECT tasker.enqueue_task('test', 'one', '"x"')`, "the context of a task must be a JSON object, not string"},
		{"context is NULL", `INSERT INTO tasker.tasks (namespace, name, context) VALUES ('test', 'one', NULL)`, "the context of a task must be a JSON object, not NULL"},
		{"context is not JSON", `INSERT INTO tasker.tasks (namespace, name, context) VALUES ('test', 'one', '{"a":')`, "invalid input syntax for type json"},
		{"NUL in context", `INSERT INTO tasker.tasks (namespace, name, context) VALUES ('test', 'one', '{"a": "\u0000"}')`, "unsupported Unicode escape sequence"},
		{"context too large", `INSERT INTO tasker.tasks (namespace, name, context) VALUES ('test', 'one', jsonb_build_object('a', repeat('x', 1100000)))`, "the context of a task has 1100009 bytes as text, at most 1048576 are kept"},
		{"priority out of range", `INSERT INTO tasker.tasks (namespace, name, priority) VALUES ('test', 'one', 9)`, "the priority of a task is a number from 1, which goes first, to 4, not 9"},
		{"run_at at the end of time", `INSERT INTO tasker.tasks (namespace, name, run_at) VALUES ('test', 'one', 'infinity')`, "run_at of a task is a time in the years 1 to 9999, not infinity"},
		{"carrier is a list", `SELECT tasker.enqueue_task('test', 'one', carrier => '[1]')`, "the carrier of a task is a JSON object, not array"},
		{"carrier too large", `INSERT INTO tasker.tasks (namespace, name, carrier) SELECT 'test', 'one', jsonb_object_agg(n, gen_random_uuid()) FROM generate_series(1, 2000) n`, "bytes as text, at most 65536 are kept"},
		{"run_at before all time", `SELECT tasker.enqueue_task('test', 'one', run_at => '-infinity')`, "run_at of a task is a time in the years 1 to 9999, not -infinity"},
		{"run_at before the common era", `INSERT INTO tasker.tasks (namespace, name, run_at) VALUES ('test', 'one', '4000-01-01 BC')`, "run_at of a task is a time in the years 1 to 9999"},
		{"run_at in ten thousand years", `INSERT INTO tasker.tasks (namespace, name, run_at) VALUES ('test', 'one', '12000-01-01')`, "run_at of a task is a time in the years 1 to 9999"},
		{"deadline before all time", `INSERT INTO tasker.tasks (namespace, name, deadline) VALUES ('test', 'one', '-infinity')`, "deadline of a task is a time in the years 1 to 9999, not -infinity"},
		{"on_duplicate unknown", `SELECT tasker.enqueue_task('test', 'one', on_duplicate => 'replace')`, "on_duplicate must be return_existing or refuse, not replace"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := b.pool.Exec(t.Context(), c.sql)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s\n got: %v\nwant: … %s …", c.sql, err, c.want)
			}
		})
	}
	if n := b.number(`SELECT count(*) FROM tasker.tasks`) + b.number(`SELECT count(*) FROM tasker.river_job`); n != 0 {
		t.Errorf("refused inserts left %d rows behind", n)
	}
	_, err := b.pool.Exec(t.Context(), "INSERT INTO tasker.tasks (namespace, name, context) VALUES ('test', 'one', $1::text::jsonb)", "{\"a\": \"\xff\"}")
	if err == nil || !strings.Contains(err.Error(), "invalid byte sequence") {
		t.Errorf("invalid UTF-8 in a context: got %v", err)
	}
}

// The engine's own columns are not the app's to set.
func TestAnInsertCannotSetWhatTheEngineOwns(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	b.exec(`INSERT INTO tasker.tasks (namespace, name, state, owner, epoch, finished_at, error)
		VALUES ('test', 'one', 'complete', 7, 9, now(), '{}')`)
	b.want("pending 0 t", `SELECT concat_ws(' ', state, epoch, owner IS NULL AND finished_at IS NULL AND error IS NULL) FROM tasker.tasks`)
}

func TestTheLatestVersionIsTheDefaultAndTasksKeepTheirs(t *testing.T) {
	b := setup(t)
	b.register(strings.Replace(oneGoStep, "1.0.0", "1.9.0", 1))
	first := b.enqueue("one", `{}`)
	b.register(strings.Replace(oneGoStep, "1.0.0", "1.10.0", 1))
	second := b.enqueue("one", `{}`)
	b.want("1.9.0", `SELECT version FROM tasker.tasks WHERE task_id = $1`, first)
	b.want("1.10.0", `SELECT version FROM tasker.tasks WHERE task_id = $1`, second)
}

// A row's template is remembered for the next row of its INSERT, and no longer.
func TestEachRowOfAnInsertFindsItsOwnTemplate(t *testing.T) {
	b := setup(t)
	other := strings.NewReplacer("name: one", "name: other", "answer: 42", "answer: 43").Replace(oneGoStep)
	for _, yaml := range []string{oneGoStep, strings.Replace(oneGoStep, "1.0.0", "1.1.0", 1), other} {
		b.register(yaml)
	}
	insert := `INSERT INTO tasker.tasks (namespace, name, version)
		SELECT 'test', r.name, r.version FROM generate_series(1, 3), (VALUES ('one', '1.0.0'), ('one', '1.1.0'), ('one', NULL), ('other', NULL)) r(name, version)`
	for range 2 { // the first INSERT also freezes the templates
		b.exec(insert)
	}
	b.want("one@1.0.0 6 6, one@1.1.0 12 12, other@1.0.0 6 6", `
		SELECT string_agg(format('%s@%s %s %s', name, version, tasks, steps), ', ' ORDER BY name, version) FROM (
			SELECT t.name, t.version, count(*) AS tasks, count(s) AS steps FROM tasker.tasks t
			JOIN tasker.task_templates m ON (m.template_id, m.namespace, m.name, m.version) = (t.template_id, t.namespace, t.name, t.version)
			LEFT JOIN tasker.template_steps p ON p.template_id = m.template_id
			LEFT JOIN tasker.steps s ON (s.task_id, s.position, s.name) = (t.task_id, p.position, p.name) GROUP BY 1, 2) counted`)

	for _, c := range []struct{ name, before string }{
		{"after an INSERT", `INSERT INTO tasker.tasks (namespace, name) VALUES ('test', 'one'), ('test', 'one')`},
		{"after an INSERT that failed", `DO $$ BEGIN
			INSERT INTO tasker.tasks (namespace, name) VALUES ('test', 'one'), ('test', 'none');
			EXCEPTION WHEN SQLSTATE 'TK001' THEN NULL; END $$`},
	} {
		t.Run(c.name, func(t *testing.T) {
			tx, err := b.pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }() // nothing of it is kept
			for _, sql := range []string{c.before, `INSERT INTO tasker.task_templates (namespace, name, version, definition, checksum, max_parallel_steps)
				SELECT namespace, name, '1.2.0', definition, checksum, max_parallel_steps FROM tasker.task_templates WHERE version = '1.1.0'`} {
				if _, err := tx.Exec(t.Context(), sql); err != nil {
					t.Fatal(err)
				}
			}
			var version string
			if err := tx.QueryRow(t.Context(), `INSERT INTO tasker.tasks (namespace, name) VALUES ('test', 'one') RETURNING version`).Scan(&version); err != nil || version != "1.2.0" {
				t.Errorf("a version registered by the same transaction: got %q, %v", version, err)
			}
		})
	}

	_, err := b.pool.Exec(t.Context(), `INSERT INTO tasker.tasks (namespace, name) VALUES ('test', 'one'), ('test', 'one'',NULL:1:1.0.0')`)
	if err == nil || !strings.Contains(err.Error(), "there is no template test/one',NULL:1:1.0.0") {
		t.Errorf("a name that looks like what is remembered: got %v", err)
	}
}

func TestATemplateIsImmutableOnceUsed(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	changed := strings.Replace(oneGoStep, "42", "43", 1)
	b.register(changed) // nobody has used it
	task := b.enqueue("one", `{}`)
	_, refused := b.tryRegister(oneGoStep)
	var r *store.RefusedError
	if !errors.As(refused, &r) || !strings.Contains(r.Message, "template test/one@1.0.0 has changed, but tasks have used this version") {
		t.Errorf("a changed template that was used: got %v", refused)
	}
	b.start()
	b.finish()
	b.want(`{"answer": 43}`, `SELECT result::text FROM tasker.steps WHERE task_id = $1`, task)
}

func TestAnIdempotencyKeyMakesOneTask(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	enqueue := `SELECT tasker.enqueue_task('test', 'one', idempotency_key => 'k', on_duplicate => $1)`
	first := b.number(enqueue, "return_existing")
	if again := b.number(enqueue, "return_existing"); again != first {
		t.Errorf("the same key made task %d, then %d", first, again)
	}
	if _, err := b.pool.Exec(t.Context(), enqueue, "refuse"); err == nil || !strings.Contains(err.Error(), "has the idempotency key k already") {
		t.Errorf("a repeated key that is to be refused: got %v", err)
	}
	b.exec(`INSERT INTO tasker.tasks (namespace, name, idempotency_key) VALUES ('test', 'one', 'k') ON CONFLICT DO NOTHING`)
	b.want("1 1 1", `SELECT concat_ws(' ', (SELECT count(*) FROM tasker.tasks), (SELECT count(*) FROM tasker.steps), (SELECT count(*) FROM tasker.river_job))`)
}

func TestRunAtDelaysTheStart(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	b.start()
	b.exec(`INSERT INTO tasker.tasks (namespace, name, run_at) VALUES ('test', 'one', now() + interval '700 milliseconds')`)
	b.finish()
	b.want("true", `SELECT (started_at >= run_at)::text FROM tasker.tasks`)
}

// Our SQL inserts into river_job and rings River's bell itself, because River's
// client isn't there when Rails inserts. Channel and payload are River's
// internals: this holds them against what its client sends.
func TestWakingAWorkerIsWhatRiverItselfDoes(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	conn, err := pgx.Connect(t.Context(), b.url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), `LISTEN "tasker.river_insert"`); err != nil {
		t.Fatal(err)
	}
	heard := func() *pgconn.Notification {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	client, err := river.NewClient(riverpgxv5.New(b.pool), &river.Config{Schema: migrations.Schema})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Insert(t.Context(), jobs.TaskExecutionArgs{TaskID: 1}, nil); err != nil {
		t.Fatal(err)
	}
	rivers := heard()
	b.enqueueMany("one", `{}`, 2)
	if ours := heard(); ours.Channel != rivers.Channel || ours.Payload != rivers.Payload {
		t.Errorf("River sends %q on %q, our SQL %q on %q", rivers.Payload, rivers.Channel, ours.Payload, ours.Channel)
	}
	b.want("task_execution default", `SELECT string_agg(DISTINCT concat_ws(' ', kind, queue), ',') FROM tasker.river_job`)

	// One that comes alone says besides which it is.
	var theirs, alone map[string]any
	task := b.enqueue("one", `{}`)
	if ours := heard(); ours.Channel != rivers.Channel || json.Unmarshal([]byte(ours.Payload), &alone) != nil || json.Unmarshal([]byte(rivers.Payload), &theirs) != nil {
		t.Fatalf("River sends %q on %q, our SQL %q on %q", rivers.Payload, rivers.Channel, ours.Payload, ours.Channel)
	}
	var job int64
	if err := b.pool.QueryRow(t.Context(), `SELECT id FROM tasker.river_job WHERE args ->> 'task_id' = $1::bigint::text`, task).Scan(&job); err != nil {
		t.Fatal(err)
	}
	theirs["task_id"], theirs["job_id"] = float64(task), float64(job)
	if !reflect.DeepEqual(alone, theirs) {
		t.Errorf("our SQL says %v of a task that comes alone, want %v", alone, theirs)
	}
	b.want("task_id", `SELECT string_agg(DISTINCT k, ',') FROM tasker.river_job, jsonb_object_keys(args) k`)
}

// Short delays are available jobs with a time in the near future: River's
// scheduler looks only every five seconds.
func TestRiverStateOfDelays(t *testing.T) {
	b := setup(t)
	for delay, want := range map[time.Duration]string{0: "available", 3 * time.Second: "available", time.Minute: "scheduled"} {
		b.want(want, `SELECT tasker.river_state(now() + $1::interval)::text`, delay)
	}
}

// Guarantee 1: enqueuing never waits for another transaction of the application, also not
// for the one that uses a template first.
func TestTheFirstInsertOfATemplateHoldsUpNoOther(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	changed := strings.Replace(oneGoStep, "42", "43", 1)
	first, err := b.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = first.Rollback(context.WithoutCancel(t.Context())) }() // it may have ended
	insert := `INSERT INTO tasker.tasks (namespace, name) VALUES ('test', 'one')`
	if _, err := first.Exec(t.Context(), insert); err != nil {
		t.Fatal(err)
	}
	b.exec(`SET LOCAL lock_timeout = '2s'; INSERT INTO tasker.tasks (namespace, name) VALUES ('test', 'one'); DELETE FROM tasker.tasks`, pgx.QueryExecModeSimpleProtocol)
	if done, err := b.tryRegister(oneGoStep); err != nil || done != store.Unchanged {
		t.Errorf("what is unchanged is registered while a transaction uses it: got %q, %v", done, err)
	}
	refused := func(want string) {
		t.Helper()
		_, err := b.tryRegister(changed)
		var r *store.RefusedError
		if !errors.As(err, &r) || !strings.Contains(r.Message, want) {
			t.Errorf("a change of the template: got %v, want %q", err, want)
		}
	}
	refused("template test/one@1.0.0 has changed, but an open transaction has inserted a task of this version")
	folder := t.TempDir()
	b.must(os.WriteFile(filepath.Join(folder, "one.yaml"), []byte(oneGoStep), 0o600))
	stop := b.start(func(c *worker.Config) { c.Templates = folder }) // a worker that starts doesn't wait either
	stop()
	if err := first.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.register(changed)
	b.register(oneGoStep)

	// One that is open in a stricter isolation doesn't see what it would have to use.
	strict, err := b.pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = strict.Rollback(context.WithoutCancel(t.Context())) }() // it has failed
	if _, err := strict.Exec(t.Context(), `SELECT 1 FROM tasker.tasks`); err != nil {
		t.Fatal(err)
	}
	b.register(changed)
	var pg *pgconn.PgError
	if _, err := strict.Exec(t.Context(), insert); !errors.As(err, &pg) || pg.Code != "40001" {
		t.Errorf("a task of a template that was replaced since its transaction began: got %v", err)
	}
	b.exec(insert)
	b.register(changed)
	changed = oneGoStep
	refused("but tasks have used this version")
}

// A key is the same over the attempts of a step, and no other step has it: of this
// database, of another one, or of one that was restored from a backup.
func TestIdempotencyKeysAreUniqueOverDatabasesAndRestores(t *testing.T) {
	b := setup(t)
	b.register(`{name: ruby, namespace_name: test, step_templates: [{name: only, handler_class: Work, default_retry_limit: 2, retry: {base_seconds: 0.001}}]}`)
	b.register(oneGoStep)
	keys := make(chan string, 10)
	b.handlers.Register("key", func(_ context.Context, a *tasker.Attempt) (any, error) {
		keys <- a.IdempotencyKey
		if a.Number == 1 {
			return nil, errors.New("again")
		}
		return nil, nil
	})
	b.register(`{name: go, namespace_name: test, step_templates: [{name: only, handler: key, retry: {base_seconds: 0.001}}]}`)
	b.start()
	inSQL := func(task int64) string {
		return b.text(`SELECT tasker.idempotency_key(t.key_seed, s.step_id) FROM tasker.tasks t JOIN tasker.steps s USING (task_id) WHERE task_id = $1`, task)
	}
	task := b.enqueue("go", `{}`)
	b.finish()
	if first, second, want := <-keys, <-keys, inSQL(task); first != want || second != want {
		t.Errorf("the keys of two attempts in Go are %q and %q, in SQL %q", first, second, want)
	}
	ruby := b.enqueue("ruby", `{}`)
	key := func(attempt int) string {
		return b.text(`SELECT a.idempotency_key FROM tasker.dispatches d CROSS JOIN LATERAL tasker.start_attempts(ARRAY[d.step_id], ARRAY[d.attempt], NULL, 7, ARRAY[d.ticket]) a
			WHERE d.step_id = $1`, b.dispatched(ruby, attempt))
	}
	fails := func() {
		b.exec(`SELECT standin.report_results(jsonb_agg(jsonb_build_object('step_id', step_id, 'attempt', attempt, 'outcome', 'failure', 'failure', '{"class": "E", "message": "no"}'::jsonb))) FROM tasker.dispatches`)
	}
	first := key(1)
	fails()
	if second := key(2); second != first || first != inSQL(ruby) {
		t.Errorf("the keys of two attempts in Ruby are %q and %q, in SQL %q", first, second, inSQL(ruby))
	}
	fails()
	b.untilState(ruby, "only", tasker.StepError)
	b.must(b.store.RetryTask(t.Context(), ruby, nil, store.Operator{}))
	if again := key(3); again != first {
		t.Errorf("after a retry the key is %q, it was %q", again, first)
	}
	fails()
	key(4)
	fails()
	b.untilState(ruby, "only", tasker.StepError)
	b.must(b.store.RetryTask(t.Context(), ruby, json.RawMessage(`{"cents": 2}`), store.Operator{}))
	if again := key(5); again == first {
		t.Errorf("with another context the key is %q still", again)
	}
	b.want("tasker-step-5 tasker-00000000002a-5", `SELECT concat_ws(' ', tasker.idempotency_key(NULL, 5), tasker.idempotency_key(42, 5))`)
	if old, made := tasker.IdempotencyKey(nil, 5), tasker.IdempotencyKey(new(int64(42)), 5); old+" "+made != "tasker-step-5 tasker-00000000002a-5" {
		t.Errorf("in Go the keys are %q and %q", old, made)
	}

	// The same numbers again, as after a restore: another order gets another key.
	insert := `INSERT INTO tasker.tasks (namespace, name) VALUES ('test', 'one') RETURNING task_id`
	lost := inSQL(int64(b.number(insert)))
	b.exec(`SELECT setval('tasker.tasks_task_id_seq', (SELECT max(task_id) - 1 FROM tasker.tasks)), setval('tasker.steps_step_id_seq', (SELECT max(step_id) - 1 FROM tasker.steps))`)
	b.exec(`DELETE FROM tasker.steps WHERE task_id = (SELECT max(task_id) FROM tasker.tasks); DELETE FROM tasker.tasks WHERE task_id = (SELECT max(task_id) FROM tasker.tasks)`, pgx.QueryExecModeSimpleProtocol)
	if now := inSQL(int64(b.number(insert))); now == lost || strings.TrimPrefix(now, "tasker-")[12:] != strings.TrimPrefix(lost, "tasker-")[12:] {
		t.Errorf("an order that was lost had the key %q, another one under its numbers has %q", lost, now)
	}
}

// One template that has changed without a new version stops no worker: what is registered is
// served, and log and readiness name the file.
func TestAChangedTemplateStopsNoWorker(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	b.exec(`INSERT INTO tasker.tasks (namespace, name) VALUES ('test', 'one')`)
	folder := t.TempDir()
	b.must(os.WriteFile(filepath.Join(folder, "one.yaml"), []byte(strings.Replace(oneGoStep, "42", "43", 1)), 0o600))
	b.must(os.WriteFile(filepath.Join(folder, "other.yaml"), []byte(strings.Replace(oneGoStep, "name: one", "name: other", 1)), 0o600))
	log := &syncBuffer{}
	b.start(func(c *worker.Config) { c.Templates, c.Logger = folder, slog.New(slog.NewTextHandler(log, nil)) })
	b.enqueue("other", `{}`)
	b.finish()
	b.want(`one {"answer": 42}, other {"answer": 42}`, `SELECT string_agg(t.name || ' ' || s.result, ', ' ORDER BY t.name) FROM tasker.tasks t JOIN tasker.steps s USING (task_id)`)
	if got := log.String(); !strings.Contains(got, "template is refused; what is registered under its version is served") || !strings.Contains(got, "one.yaml") {
		t.Errorf("the log says %s", got)
	}
}

// What --dry-run asks changes nothing.
func TestATemplateCanBeTried(t *testing.T) {
	b := setup(t)
	try := func(yaml string) (store.Registration, error) {
		parsed, err := template.Parse("test.yaml", []byte(yaml), template.Options{})
		b.must(err)
		return b.store.TryTemplate(t.Context(), parsed, template.Checksum(parsed))
	}
	changed := strings.Replace(oneGoStep, "42", "43", 1)
	for range 2 {
		if would, err := try(oneGoStep); err != nil || would != store.Registered {
			t.Errorf("a new one would be %q, %v", would, err)
		}
	}
	b.register(oneGoStep)
	if would, err := try(changed); err != nil || would != store.Replaced {
		t.Errorf("an unused one would be %q, %v", would, err)
	}
	b.enqueue("one", `{}`)
	var refused *store.RefusedError
	if _, err := try(changed); !errors.As(err, &refused) {
		t.Errorf("one that is used: %v", err)
	}
	if would, err := try(oneGoStep); err != nil || would != store.Unchanged {
		t.Errorf("the same would be %q, %v", would, err)
	}
}
