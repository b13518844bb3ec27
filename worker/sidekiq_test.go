package worker_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/devstack"
	"github.com/taskerhq/tasker/sidekiq"
	"github.com/taskerhq/tasker/worker"
)

func TestARubyStepRunsInARealSidekiq(t *testing.T) {
	b := setup(t)
	b.register(oneRubyStep)
	b.start()
	b.sidekiq()
	task := b.enqueue("ruby", `{}`)
	b.finish()
	b.want(`{"answer": 42, "attempt": 1}`, `SELECT result::text FROM tasker.steps WHERE task_id = $1`, task)
	b.want("step.execution_requested step.handle step.completed",
		`SELECT string_agg(name, ' ' ORDER BY event_id) FROM tasker.events WHERE task_id = $1 AND name LIKE 'step.%'`, task)
	b.want("0", `SELECT count(*)::text FROM tasker.dispatches`)
}

func TestADiamondOfGoAndRubyCarriesBothResultsIntoTheJoin(t *testing.T) {
	b := setup(t)
	b.handlers.Register("square", square)
	b.register(`
name: diamond
namespace_name: test
step_templates:
  - {name: start, handler: square}
  - {name: go, handler: square, depends_on_step: start}
  - {name: ruby, handler_class: Square, depends_on_step: start}
  - {name: join_go, handler: square, depends_on_steps: [go, ruby]}
  - {name: join_ruby, handler_class: Square, depends_on_steps: [go, ruby]}
  - {name: end, handler_class: Square, depends_on_steps: [join_go, join_ruby]}`)
	b.start()
	b.sidekiq()
	task := b.enqueue("diamond", `{"n": 2}`)
	b.finish()
	// 4; 16 and 16; 256² = 65536 twice; (2³²)² = 2⁶⁴, which is no int64: JSON
	// numbers have no such limit, Ruby's integers neither.
	b.want("65536 65536 18446744073709551616", `SELECT string_agg(result ->> 'value', ' ' ORDER BY position) FROM tasker.steps WHERE task_id = $1 AND position >= 3`, task)
}

func TestFailuresOfRubyHandlers(t *testing.T) {
	b := setup(t)
	b.register(`
name: failures
namespace_name: test
step_templates:
  - {name: permanent, handler_class: Fail, handler_config: {permanent: true}}
  - {name: recovers, handler_class: Fail, handler_config: {times: 2}, retry: {backoff: fixed, base_seconds: 0.05, jitter: 0}}
  - {name: asks, handler_class: Fail, handler_config: {times: 1, retry_after: 0.2}, retry: {base_seconds: 100}}
  - {name: gives_up, handler_class: Fail, handler_config: {times: 9}, default_retry_limit: 2, retry: {base_seconds: 0.01}}
  - {name: missing, handler_class: Nobody::WroteThis}
  - {name: no_handler, handler_class: File}
  - {name: after, handler_class: Echo, depends_on_steps: [recovers, asks]}`)
	b.start(func(c *worker.Config) {
		c.HandlerWait, c.ClockEvery, c.RepairEvery, c.UnstartedFor, c.TakenFor = time.Second, 100*time.Millisecond, 100*time.Millisecond, 200*time.Millisecond, 50*time.Millisecond
	})
	b.sidekiq()
	task := b.enqueue("failures", `{}`)
	b.finish()
	b.want("permanent error 1, recovers complete 3, asks complete 2, gives_up error 2, missing error 1, no_handler error 1, after complete 1",
		`SELECT string_agg(concat_ws(' ', name, state, attempts), ', ' ORDER BY position) FROM tasker.steps WHERE task_id = $1`, task)
	for step, want := range map[string][3]string{
		"permanent":  {"TaskerCore::PermanentError", "told_to", "told to"},
		"gives_up":   {"TaskerCore::RetryableError", "", "told to"},
		"missing":    {"", tasker.CodeHandlerNotFound, "Nobody::WroteThis"},
		"no_handler": {"", tasker.CodeHandlerNotFound, "File"},
	} {
		f := b.failure(task, step)
		if want[0] != "" && f.Class != want[0] || f.Code != want[1] || !strings.Contains(f.Message, want[2]) {
			t.Errorf("%s: got %s %q %q, want %q", step, f.Class, f.Code, f.Message, want)
		}
	}
	b.want("0.2", `SELECT data ->> 'retry_in_seconds' FROM tasker.events WHERE name = 'step.retry_requested' AND step_id = $1`, b.step(task, "asks").StepID)
}

func TestResultsOfRubyHandlersThatCannotBeStored(t *testing.T) {
	b := setup(t)
	b.register(`
name: results
namespace_name: test
step_templates:
  - {name: object, handler_class: Return}
  - {name: nan, handler_class: Return}
  - {name: nul, handler_class: Return}
  - {name: utf8, handler_class: Return}
  - {name: large, handler_class: Return}
  - {name: mebibyte, handler_class: Return}`)
	b.start()
	b.sidekiq()
	task := b.enqueue("results", `{}`)
	b.finish()
	for step, want := range map[string][2]string{
		"object": {tasker.CodeResultNotSerializable, "$.io"},
		"nan":    {tasker.CodeResultNotSerializable, "$.list[1]"},
		"nul":    {tasker.CodeResultNotSerializable, "$.text"},
		"utf8":   {tasker.CodeResultNotSerializable, "$.text"},
		"large":  {tasker.CodeResultTooLarge, ""},
	} {
		f := b.failure(task, step)
		if f.Code != want[0] || !strings.Contains(f.Message, want[1]) {
			t.Errorf("%s: got %q %q, want %q", step, f.Code, f.Message, want)
		}
		b.want("error 1", `SELECT concat_ws(' ', state, attempts) FROM tasker.steps WHERE task_id = $1 AND name = $2`, task, step)
	}
	b.want("1048576", `SELECT length(result ->> 'text')::text FROM tasker.steps WHERE task_id = $1 AND name = 'mebibyte'`, task)
}

const rubyWork = `
name: work
namespace_name: test
step_templates:
  - {name: a, handler_class: Work, handler_config: {seconds: 0.02}}
  - {name: b, handler_class: Work, handler_config: {seconds: 0.02}, depends_on_step: a}
  - {name: c, handler: tasker.echo, depends_on_step: b}`

// Guarantee 2 again: Sidekiq's open source fetch loses the jobs that a killed
// process was running.
func TestStepsOfAKilledSidekiqRunAgain(t *testing.T) {
	b := setup(t)
	b.register(rubyWork)
	b.start()
	first := b.sidekiq()
	b.enqueueMany("work", `{}`, 200)
	b.until("sidekiq is in the middle", func() bool {
		return b.number(`SELECT count(*) FROM tasker.steps WHERE state = 'complete'`) > 100 &&
			b.number(`SELECT count(*) FROM tasker.steps WHERE state = 'in_progress'`) > 0
	})
	first.kill(b)
	lost := b.number(`SELECT count(*) FROM tasker.steps WHERE state = 'in_progress' AND name <> 'c'`)
	if lost == 0 {
		t.Fatal("the process was killed while it ran nothing")
	}
	b.sidekiq()
	b.finish()
	b.want("200", `SELECT count(*)::text FROM tasker.tasks WHERE state = 'complete'`)
	if n := b.number(`SELECT sum(losses) FROM tasker.steps`); n < lost {
		t.Errorf("%d attempts were running when the process was killed, %d are recorded as lost", lost, n)
	}
	b.checkHistory()
}

// Redis may lose all it has: the jobs are found missing and pushed again.
func TestAFlushedRedisLosesNothing(t *testing.T) {
	b := setup(t)
	b.register(rubyWork)
	b.start()
	b.enqueueMany("work", `{}`, 20)
	b.until("all jobs are in Redis", func() bool { return len(b.queued("default")) == 20 })
	client, err := sidekiq.Open(b.redisURL)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.FlushDB(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	b.sidekiq()
	b.finish()
	b.want("20", `SELECT count(*)::text FROM tasker.tasks WHERE state = 'complete'`)
	b.want("1 0", `SELECT concat_ws(' ', max(attempts), max(losses)) FROM tasker.steps`) // never started: nothing was lost but the payload
	b.checkHistory()
}

// What a thread of Sidekiq has just taken is in no queue, and isn't lost.
func TestAJobThatWasJustTakenIsNotPushedAgain(t *testing.T) {
	b := setup(t)
	b.register(rubyWork)
	b.start(func(c *worker.Config) { c.UnstartedFor, c.RepairEvery = 500*time.Millisecond, 50*time.Millisecond })
	taken, lost := b.enqueue("work", `{}`), b.enqueue("work", `{}`)
	b.until("both jobs are in Redis", func() bool { return len(b.queued("default")) == 2 })
	client := b.redis()
	b.exec(`UPDATE tasker.dispatches SET looked_at = 'infinity'`) // not while the test takes them
	if err := client.Del(t.Context(), "queue:default").Err(); err != nil {
		t.Fatal(err)
	}
	b.exec(`UPDATE tasker.dispatches SET looked_at = 'epoch'`)
	b.until("the worker has looked for them", func() bool {
		return b.number(`SELECT count(*) FROM tasker.dispatches WHERE looked_at > 'epoch'`) == 2
	})
	b.exec(`UPDATE tasker.dispatches SET started_at = now() WHERE task_id = $1`, taken)
	b.until("what is lost is back", func() bool { return len(b.queued("default")) > 0 })
	for _, payload := range b.queued("default") {
		if step := b.step(lost, "a").StepID; !strings.Contains(payload, fmt.Sprintf(`"step_id":%d`, step)) {
			t.Errorf("pushed again: %s, want only step %d", payload, step)
		}
	}
}

// Redis away when the worker starts, and again in the middle.
func TestWhileRedisIsAwayRubyStepsWaitAndGoStepsRun(t *testing.T) {
	b := setup(t)
	redis, err := devstack.StartRedis(t.Context(), devstack.RedisOptions{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	b.redisURL = redis.URL(0)
	if err := redis.Kill(); err != nil {
		t.Fatal(err)
	}
	b.register(oneGoStep)
	b.register(oneRubyStep)
	w := b.worker()
	goTask, rubyTask := b.enqueue("one", `{}`), b.enqueue("ruby", `{}`)
	b.until("the Go task is complete", func() bool { return b.text(`SELECT state FROM tasker.tasks WHERE task_id = $1`, goTask) == "complete" })
	b.until("the worker says what is wrong", func() bool {
		return strings.Contains(w.log.String(), "redis is away: Ruby steps wait, nothing is lost; check --redis-url")
	})
	b.want("enqueued 1", `SELECT concat_ws(' ', state, attempts) FROM tasker.steps WHERE task_id = $1`, rubyTask)

	if err := redis.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = redis.Kill() }) // the test is over
	b.sidekiq()
	b.finish()

	if err := redis.Kill(); err != nil {
		t.Fatal(err)
	}
	second := b.enqueue("ruby", `{}`)
	b.until("the step is claimed", func() bool { return b.step(second, "only").State == tasker.StepEnqueued })
	if err := redis.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.finish()
	b.want("3", `SELECT count(*)::text FROM tasker.tasks WHERE state = 'complete'`)
	if code := w.terminate(b); code != 0 {
		t.Errorf("the worker's exit code after SIGTERM is %d", code)
	}
}

// dispatched enqueues a Ruby task and waits until its attempt is out. No
// Sidekiq runs: the test itself is the process.
func (b *bundle) dispatched(task int64, attempt int) int64 {
	b.Helper()
	var step int64
	b.until(fmt.Sprintf("attempt %d is out", attempt), func() bool {
		s := b.step(task, "only")
		step = s.StepID
		return s.State == tasker.StepEnqueued && s.Attempts == attempt
	})
	return step
}

// report reports one result and returns whether it was accepted, and why not.
func (b *bundle) report(report string, args ...any) (accepted bool, reason string) {
	b.Helper()
	err := b.pool.QueryRow(b.Context(), `SELECT accepted, coalesce(reason, '') FROM standin.report_results($1::jsonb)`,
		"["+fmt.Sprintf(report, args...)+"]").Scan(&accepted, &reason)
	if err != nil {
		b.Fatal(err)
	}
	return accepted, reason
}

// Guarantee 3: one accepted result per attempt.
func TestDuplicateAndStaleResultsAreRefusedAndRecorded(t *testing.T) {
	b := setup(t)
	b.register(strings.Replace(oneRubyStep, "{name: only,", "{name: only, retry: {base_seconds: 0.01},", 1))
	b.start()
	task := b.enqueue("ruby", `{}`)
	step := b.dispatched(task, 1)
	const failure = `{"step_id": %d, "attempt": 1, "outcome": "failure", "failure": {"class": "X", "message": "first"}}`
	if ok, reason := b.report(failure, step); !ok {
		t.Fatalf("the first report was refused: %s", reason)
	}
	b.dispatched(task, 2)

	for _, c := range []struct{ report, want string }{
		{failure, "is at attempt 2, not 1"},
		{`{"step_id": %d, "attempt": 1, "outcome": "success", "result": "stale"}`, "is at attempt 2, not 1"},
		{`{"step_id": %d, "attempt": 3, "outcome": "success", "result": "forged"}`, "is at attempt 2, not 3"},
		{`{"step_id": %d, "attempt": 1, "outcome": "lost"}`, "is at attempt 2, not 1"},
	} {
		if ok, reason := b.report(c.report, step); ok || !strings.Contains(reason, c.want) {
			t.Errorf("%s: accepted %t, %q; want refused, … %s …", c.report, ok, reason, c.want)
		}
	}
	if ok, reason := b.report(`{"step_id": %d, "attempt": 2, "outcome": "success", "result": "good"}`, step); !ok {
		t.Fatalf("the current attempt's result was refused: %s", reason)
	}
	for _, again := range []string{"good", "other"} {
		if ok, reason := b.report(`{"step_id": %d, "attempt": 2, "outcome": "success", "result": %q}`, step, again); ok || !strings.Contains(reason, "is complete") {
			t.Errorf("a second result: accepted %t, %q", ok, reason)
		}
	}
	b.finish()
	b.want(`complete "good" 2`, `SELECT concat_ws(' ', state, result, attempts) FROM tasker.steps WHERE step_id = $1`, step)
	b.want("6", `SELECT count(*)::text FROM tasker.events WHERE step_id = $1 AND name = 'step.report_refused' AND data ? 'reason'`, step)
	b.want("1", `SELECT count(*)::text FROM tasker.events WHERE step_id = $1 AND name = 'step.completed'`, step)

	var started struct{ Status, Reason string }
	if err := json.Unmarshal([]byte(b.text(`SELECT standin.start_attempt($1, 1)::text`, step)), &started); err != nil {
		t.Fatal(err)
	}
	if started.Status != "refused" || !strings.Contains(started.Reason, "is at attempt 2, not 1") {
		t.Errorf("starting a stale attempt: got %+v", started)
	}
}

func TestMalformedReportsAreRefusedWhole(t *testing.T) {
	b := setup(t)
	b.register(oneRubyStep)
	b.start()
	step := b.dispatched(b.enqueue("ruby", `{}`), 1)
	good := fmt.Sprintf(`{"step_id": %d, "attempt": 1, "outcome": "success"}`, step)
	for _, bad := range []string{`{}`, `[1]`, `null`, `[null]`, `[{"step_id": 1}]`, `[{"step_id": "x", "attempt": 1, "outcome": "success"}]`,
		`[{"step_id": 1, "attempt": -1, "outcome": "success"}]`, `[{"step_id": 1, "attempt": 1, "outcome": "maybe"}]`,
		`[{"step_id": 1, "attempt": 1, "outcome": "failure"}]`, `[{"step_id": 1.5, "attempt": 1, "outcome": "lost"}]`,
		`[` + good + `, {"step_id": 99999999999999999999, "attempt": 1, "outcome": "lost"}]`} {
		if _, err := b.pool.Exec(t.Context(), `SELECT tasker.report_results($1::jsonb)`, bad); err == nil || !strings.Contains(err.Error(), "TK007") {
			t.Errorf("%s: got %v", bad, err)
		}
	}
	b.want("enqueued", `SELECT state FROM tasker.steps WHERE step_id = $1`, step)
}

// A task that only waits for Sidekiq is given up: no loop, no River job. The
// report brings it back.
func TestAParkedTaskGoesOnWhenItsReportComes(t *testing.T) {
	b := setup(t)
	b.register(`
name: parks
namespace_name: test
step_templates:
  - {name: only, handler_class: Echo}
  - {name: after, handler: tasker.echo, depends_on_step: only}`)
	b.start(parkAfter(20 * time.Millisecond))
	task := b.enqueue("parks", `{}`)
	step := b.dispatched(task, 1)
	b.until("the task is parked", func() bool {
		return b.number(`SELECT count(*) FROM tasker.tasks t JOIN tasker.dispatches d USING (task_id) WHERE t.owner IS NULL AND d.awaited_by IS NULL`) == 1
	})
	if ok, reason := b.report(`{"step_id": %d, "attempt": 1, "outcome": "success", "result": 5}`, step); !ok {
		t.Fatal(reason)
	}
	b.finish()
	b.want(`{"dependencies": {"only": 5}}`, `SELECT result::text FROM tasker.steps WHERE task_id = $1 AND name = 'after'`, task)
}

// Reports and parking race by design; whichever wins, the task goes on. Tasks
// are parked and reported at the same time, many times over.
func TestNoReportIsLostBetweenWaitingAndParked(t *testing.T) {
	b := setup(t)
	b.register(oneRubyStep)
	const parks = 2 * time.Millisecond
	b.start(parkAfter(parks))
	b.enqueueMany("ruby", `{}`, 300)
	reported := 0
	b.until("all are reported and finished", func() bool {
		rows, err := b.pool.Query(t.Context(), `SELECT r.accepted FROM (
				SELECT jsonb_agg(jsonb_build_object('step_id', step_id, 'attempt', attempt, 'outcome', 'success')) AS reports
				FROM (SELECT * FROM tasker.dispatches WHERE failure IS NULL AND looked_at < clock_timestamp() - $1::interval ORDER BY random() LIMIT 7) d) x,
			standin.report_results(coalesce(x.reports, '[]')) r`, parks/2)
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			reported++
		}
		if rows.Err() != nil {
			t.Fatal(rows.Err())
		}
		return b.number(`SELECT count(*) FROM tasker.tasks WHERE state = 'complete'`) == 300
	})
	b.checkHistory()
}

// Guarantee 5: who runs and lives keeps its attempt, however often it is looked at.
func TestAnAttemptThatRunsIsNotTakenAway(t *testing.T) {
	b := setup(t)
	b.register(`{name: slow, namespace_name: test, step_templates: [{name: only, handler_class: Work, handler_config: {seconds: 1.5}}]}`)
	b.start(func(c *worker.Config) {
		c.ClockEvery, c.RepairEvery, c.UnstartedFor = 100*time.Millisecond, 100*time.Millisecond, 200*time.Millisecond
	})
	b.sidekiq()
	b.enqueueMany("slow", `{}`, 5)
	b.finish()
	b.want("5 of 1 attempts, 0 lost", `SELECT format('%s of %s attempts, %s lost', count(*), max(attempts), max(losses)) FROM tasker.steps WHERE state = 'complete'`)
}

// In a rolling deployment a process of the version before takes a step whose class it
// doesn't have: the step waits for one that has it, and no attempt is used up.
func TestAStepWaitsForAProcessThatHasItsClass(t *testing.T) {
	b := setup(t)
	b.register(`
name: new
namespace_name: test
step_templates:
  - {name: before, handler_class: Echo}
  - {name: late, handler_class: Late, depends_on_step: before, default_retry_limit: 1}`)
	b.start(func(c *worker.Config) {
		c.RepairEvery, c.UnstartedFor, c.TakenFor = 100*time.Millisecond, 200*time.Millisecond, 50*time.Millisecond
	})
	old := b.sidekiq()
	task := b.enqueue("new", `{}`)
	b.until("the process has said that it lacks the class", func() bool {
		return b.number(`SELECT count(*) FROM tasker.dispatches WHERE missing_since IS NOT NULL`) == 1
	})
	explained, err := b.store.Explain(t.Context(), task)
	b.must(err)
	if got, want := explained.Steps[1].Explanation, "for a Sidekiq process that has the class Late: "; !strings.Contains(got, want) || !strings.Contains(got, fmt.Sprintf(":%d:", old.cmd.Process.Pid)) {
		t.Errorf("explain says %q, want %q and the process", got, want)
	}
	first := b.text(`SELECT looked_at::text FROM tasker.dispatches`)
	b.until("it was pushed again, in vain", func() bool { return b.text(`SELECT looked_at::text FROM tasker.dispatches`) != first })
	b.sidekiqEnv = append(b.sidekiqEnv, "TASKER_TEST_LATE=1")
	b.sidekiq()
	b.finish()
	b.want("complete 1 0", `SELECT concat_ws(' ', state, attempts, losses) FROM tasker.steps WHERE task_id = $1 AND name = 'late'`, task)
	b.checkHistory()
}
