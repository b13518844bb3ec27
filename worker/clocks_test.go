package worker_test

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/devstack"
	"github.com/taskerhq/tasker/handler"
	"github.com/taskerhq/tasker/migrations"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/testenv"
	"github.com/taskerhq/tasker/worker"
)

// setupWithClocks is setup with a Postgres of its own and with clocks that are
// off by so much, compared with that of this process, the worker's. (A Go
// program can't be given a wrong clock. Everything else can.)
func setupWithClocks(t *testing.T, postgres, sidekiq time.Duration) *bundle {
	t.Helper()
	t.Parallel()
	dir, cleanup, err := devstack.WorkDir("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cleanup)
	wrong := func(ahead time.Duration) []string {
		env, err := devstack.WrongClock(t.Context(), dir, ahead)
		if errors.Is(err, devstack.ErrNoWrongClock) {
			t.Skip(err)
		} else if err != nil {
			t.Fatal(err)
		}
		return env
	}
	sidekiqEnv, postgresEnv := wrong(sidekiq), wrong(postgres)
	b := &bundle{T: t, redisURL: testenv.Redis(t), handlers: handler.NewRegistry(), sidekiqEnv: sidekiqEnv}
	server, err := devstack.StartPostgres(t.Context(), devstack.PostgresOptions{Dir: filepath.Join(dir, "postgres"), Env: postgresEnv})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Kill() }) // the test is over
	b.must(server.CreateDatabase(t.Context(), "clocks"))
	b.url = server.URL("clocks")
	b.pool = testenv.Pool(t, b.url)
	b.store = store.New(b.pool)
	b.must(migrations.Up(t.Context(), b.pool))
	var off float64
	b.must(b.pool.QueryRow(t.Context(), `SELECT extract(epoch FROM clock_timestamp() - $1::timestamptz)::float`, time.Now()).Scan(&off))
	if off-postgres.Seconds() > 60 || postgres.Seconds()-off > 60 {
		t.Fatalf("Postgres' clock is off by %.0f s, and not by %s", off, postgres)
	}
	return b
}

// The worker, Sidekiq and Postgres have three opinions of the time, hours apart.
// Delays, timeouts, leases and later starts are as long as ever: the time that
// counts is Postgres', and what the others measure are spans.
func TestClocksAreHoursApart(t *testing.T) {
	t.Parallel()
	for name, off := range map[string]struct{ postgres, sidekiq time.Duration }{
		"PostgresAheadSidekiqBehind": {time.Hour + time.Minute, -time.Hour - time.Minute},
		"PostgresBehindSidekiqAhead": {-time.Hour - time.Minute, time.Hour + time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			b := setupWithClocks(t, off.postgres, off.sidekiq)
			date := b.text(`SELECT to_char((clock_timestamp() + interval '8 s') AT TIME ZONE 'UTC', 'Dy, DD Mon YYYY HH24:MI:SS "GMT"')`)
			b.register(`
name: clocks
namespace_name: test
retry: {backoff: fixed, base_seconds: 0.1, jitter: 0}
step_templates:
  - {name: go, handler: tasker.fail, handler_config: {times: 1}, timeout_seconds: 30}
  - {name: ruby, handler_class: Fail, handler_config: {times: 1}, timeout_seconds: 30}
  - {name: works, handler_class: Work, handler_config: {seconds: 0.5}, timeout_seconds: 30}
  - {name: later, handler: tasker.fail, handler_config: {times: 1, retry_after: 3}}
  - {name: dated, handler_class: Fail, handler_config: {times: 1, retry_after: "` + date + `"}}
  - {name: overruns, handler_class: Mix, handler_config: {salt: 1, overruns: deaf}, timeout_seconds: 2}
  - {name: end, handler_class: Echo, depends_on_steps: [go, ruby, works, later, dated, overruns]}`)
			b.register(`
name: long
namespace_name: test
step_templates: [{name: only, handler: tasker.sleep, handler_config: {seconds: 2}}]`)
			b.register(oneGoStep)
			began := b.text(`SELECT clock_timestamp()::text`)
			first := b.worker("--lease", "1s")
			long := b.enqueue("long", `{}`)
			b.until("the long step runs", func() bool { return b.step(long, "only").State == tasker.StepInProgress })
			first.kill(b)
			// One that somebody holds when it is claimed: its River job comes again.
			held := b.enqueue("one", `{}`)
			holder, err := b.pool.Begin(t.Context())
			b.must(err)
			_, err = holder.Exec(t.Context(), `SELECT FROM tasker.tasks WHERE task_id = $1 FOR UPDATE`, held)
			b.must(err)
			b.worker("--lease", "1s")
			b.until("the held one has been put off again and again", func() bool {
				return b.number(`SELECT coalesce(max((metadata ->> 'snoozes')::int), 0) FROM tasker.river_job WHERE (args ->> 'task_id')::bigint = $1`, held) >= 5
			})
			b.must(holder.Rollback(t.Context()))
			b.sidekiq()
			b.enqueueMany("clocks", `{}`, 4)
			b.exec(`INSERT INTO tasker.tasks (namespace, name, run_at) VALUES ('test', 'one', now() + interval '2 s')`)
			b.finish()

			b.want("complete 7", `SELECT string_agg(concat_ws(' ', state, n), ', ') FROM (SELECT state, count(*) AS n FROM tasker.tasks GROUP BY state) x`)
			// One worker died, and one only; no process did.
			b.want("dead, alive", `SELECT string_agg(state, ', ' ORDER BY worker_id) FROM tasker.workers`)
			b.want("2 1", `SELECT concat_ws(' ', attempts, losses) FROM tasker.steps WHERE task_id = $1`, long)
			b.want("go 2 0, ruby 2 0, works 1 0, later 2 0, dated 2 0, overruns 2 0, end 1 0", `SELECT string_agg(line, ', ' ORDER BY position) FROM (
				SELECT DISTINCT position, concat_ws(' ', s.name, attempts, losses) AS line FROM tasker.steps s JOIN tasker.tasks t USING (task_id)
				WHERE t.name = 'clocks') x`)
			b.want("4", `SELECT count(*)::text FROM tasker.events WHERE data ->> 'code' = 'attempt_timeout'`)
			// A date is a time by the database's clock, not by the worker's.
			b.want("4", `SELECT count(*)::text FROM tasker.events e JOIN tasker.steps s USING (step_id)
				WHERE s.name = 'dated' AND e.name = 'step.retry_requested' AND (e.data ->> 'retry_in_seconds')::float BETWEEN 0 AND 10`)
			b.want("0", `SELECT count(*)::text FROM tasker.events r JOIN tasker.events n ON n.step_id = r.step_id AND n.attempt = r.attempt + 1
				WHERE r.name = 'step.retry_requested' AND n.created_at < r.created_at + make_interval(secs => (r.data ->> 'retry_in_seconds')::float)`)
			b.want("true", `SELECT (started_at >= run_at)::text FROM tasker.tasks WHERE run_at IS NOT NULL`)
			// Whatever was written down was so by one clock.
			b.want("0", `SELECT count(*)::text FROM (
				SELECT created_at AS at FROM tasker.events UNION ALL SELECT started_at FROM tasker.steps UNION ALL SELECT finished_at FROM tasker.steps
				UNION ALL SELECT created_at FROM tasker.tasks UNION ALL SELECT started_at FROM tasker.tasks UNION ALL SELECT finished_at FROM tasker.tasks
				UNION ALL SELECT last_seen_at FROM tasker.workers WHERE state = 'alive' UNION ALL SELECT last_seen_at FROM tasker.processes) written
				WHERE at NOT BETWEEN $1::text::timestamptz AND clock_timestamp()`, began)
			b.checkHistory()
		})
	}
}

// A task that is paused overnight does not fail by its deadline: that waits with it.
func TestThePauseOfATaskStopsItsDeadline(t *testing.T) {
	b := setup(t)
	b.register(oneRubyStep)
	b.start(func(c *worker.Config) { c.ClockEvery = 20 * time.Millisecond })
	task := int64(b.number(`INSERT INTO tasker.tasks (namespace, name, run_at, deadline) VALUES ('test', 'ruby', now() + interval '1 hour', now() + interval '1 second') RETURNING task_id`))
	b.must(b.store.PauseTask(t.Context(), task, store.Operator{}))
	b.until("the deadline has passed, and the clocks were read since", func() bool {
		return b.number(`SELECT count(*) FROM tasker.tasks WHERE deadline < clock_timestamp() - interval '200 milliseconds'`) == 1
	})
	b.want("pending", `SELECT state FROM tasker.tasks`)
	b.must(b.store.ResumeTask(t.Context(), task, store.Operator{}))
	b.want("true", `SELECT (deadline > clock_timestamp())::text FROM tasker.tasks`)
	b.until("the rest of its time is over", func() bool { return b.number(`SELECT count(*) FROM tasker.tasks WHERE state = 'error'`) == 1 })
	b.want("task_deadline t", `SELECT concat_ws(' ', error ->> 'code', finished_at >= deadline) FROM tasker.tasks`)
}
