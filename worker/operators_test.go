package worker_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/migrations"
	"github.com/taskerhq/tasker/store"
)

var ada = store.Operator{Name: "ada", Reason: "a test"}

// gate is a Go handler that a test holds and lets go.
type gate struct {
	running chan struct{} // one token per attempt that has begun
	release chan struct{} // closed: attempts end
	calls   atomic.Int64
	stopped atomic.Int64 // attempts that were told to stop
}

func newGate(b *bundle, name string) *gate {
	g := &gate{running: make(chan struct{}, 100), release: make(chan struct{})}
	b.handlers.Register(name, func(ctx context.Context, a *tasker.Attempt) (any, error) {
		g.calls.Add(1)
		g.running <- struct{}{}
		select {
		case <-g.release:
			return map[string]int{"attempt": a.Number}, nil
		case <-ctx.Done():
			g.stopped.Add(1)
			return nil, ctx.Err()
		}
	})
	return g
}

func (b *bundle) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func TestCancellingATaskStopsAllOfIt(t *testing.T) {
	b := setup(t)
	g := newGate(b, "gate")
	b.register(`
name: cancels
namespace_name: test
step_templates:
  - {name: done, handler: tasker.echo}
  - {name: runs, handler: gate, depends_on_step: done}
  - {name: ruby, handler_class: Echo}
  - {name: waits, handler: tasker.fail, retry: {base_seconds: 100}}
  - {name: behind, handler: tasker.echo, depends_on_steps: [runs, ruby]}`)
	b.start()
	task := b.enqueue("cancels", `{}`)
	<-g.running
	b.until("the others are where they should be", func() bool {
		return b.step(task, "waits").State == tasker.StepWaitingForRetry && b.step(task, "ruby").State == tasker.StepEnqueued
	})
	b.must(b.store.CancelTask(t.Context(), task, ada))
	b.until("the running handler is told", func() bool { return g.stopped.Load() == 1 })
	b.want("cancelled complete,cancelled,cancelled,cancelled,cancelled",
		`SELECT t.state || ' ' || string_agg(s.state, ',' ORDER BY position) FROM tasker.tasks t JOIN tasker.steps s USING (task_id) GROUP BY t.state`)
	if ok, reason := b.report(`{"step_id": %d, "attempt": 1, "outcome": "success"}`, b.step(task, "ruby").StepID); ok || !strings.Contains(reason, "is cancelled") {
		t.Errorf("a result for a cancelled step: accepted %t, %s", ok, reason)
	}
	b.want("ada a test", `SELECT concat_ws(' ', data ->> 'by', data ->> 'reason') FROM tasker.events WHERE name = 'task.cancelled'`)
	b.want("t 0", `SELECT concat_ws(' ', owner IS NULL, (SELECT count(*) FROM tasker.dispatches)) FROM tasker.tasks`)
}

func TestRetryingATaskGoesOnFromWhereItFailed(t *testing.T) {
	b := setup(t)
	var first atomic.Int64
	b.handlers.Register("first", func(context.Context, *tasker.Attempt) (any, error) { return first.Add(1), nil })
	b.handlers.Register("picky", func(_ context.Context, a *tasker.Attempt) (any, error) {
		var in struct{ Good bool }
		if err := json.Unmarshal(a.Context, &in); err != nil || !in.Good {
			return nil, errors.New("not good")
		}
		return map[string]any{"used": a.Used, "number": a.Number, "last": a.Last()}, nil
	})
	b.register(`
name: retried
namespace_name: test
step_templates:
  - {name: first, handler: first}
  - {name: picky, handler: picky, depends_on_step: first, default_retry_limit: 2, retry: {base_seconds: 0.01}}
  - {name: after, handler: tasker.echo, depends_on_step: picky}`)
	b.start()
	task := b.enqueue("retried", `{"good": false}`)
	b.finish()
	b.want("error", `SELECT state FROM tasker.tasks`)
	b.must(b.store.RetryTask(t.Context(), task, nil, ada)) // the same again: fails again, after its full number of attempts
	b.finish()
	b.want("error 4 2", `SELECT concat_ws(' ', state, attempts, forgiven) FROM tasker.steps WHERE name = 'picky'`)
	b.must(b.store.RetryTask(t.Context(), task, json.RawMessage(`{"good": true}`), ada))
	b.finish()
	b.want("complete", `SELECT state FROM tasker.tasks`)
	b.want(`{"last": false, "used": 1, "number": 5}`, `SELECT result::text FROM tasker.steps WHERE name = 'picky'`)
	if first.Load() != 1 {
		t.Errorf("the step that had finished ran %d times", first.Load())
	}
	b.want("2", `SELECT count(*)::text FROM tasker.events WHERE name = 'task.retry_requested' AND data ->> 'by' = 'ada'`)
}

func TestSettlingStepsByHandLetsTheTaskGoOn(t *testing.T) {
	b := setup(t)
	b.register(`
name: settled
namespace_name: test
step_templates:
  - {name: broken, handler: tasker.fail, handler_config: {permanent: true}}
  - {name: useless, handler: tasker.fail, handler_config: {permanent: true}}
  - {name: after, handler: tasker.echo, depends_on_steps: [broken, useless]}`)
	b.start()
	task := b.enqueue("settled", `{}`)
	b.finish()
	b.must(b.store.ResolveStep(t.Context(), b.step(task, "broken").StepID, json.RawMessage(`{"by_hand": true}`), ada))
	b.finish() // one is still in error
	b.want("error", `SELECT state FROM tasker.tasks`)
	b.must(b.store.SkipStep(t.Context(), b.step(task, "useless").StepID, ada))
	b.finish()
	b.want("complete", `SELECT state FROM tasker.tasks`)
	b.want(`{"dependencies": {"broken": {"by_hand": true}, "useless": null}}`, `SELECT result::text FROM tasker.steps WHERE name = 'after'`)
	b.want("step.resolved_manually ada, step.skipped ada", `SELECT string_agg(concat_ws(' ', name, data ->> 'by'), ', ' ORDER BY event_id) FROM tasker.events WHERE data ? 'by' AND name LIKE 'step.%'`)
}

// What an operator does to one step leaves the attempts of others alone, in
// memory as in the database.
func TestAVerbKeepsTheAttemptsThatRun(t *testing.T) {
	b := setup(t)
	g := newGate(b, "gate")
	b.register(`
name: keeps
namespace_name: test
step_templates:
  - {name: long, handler: gate}
  - {name: ruby, handler_class: Echo}
  - {name: waits, handler: tasker.fail, handler_config: {times: 1}, retry: {base_seconds: 1000, cap_seconds: 1000}}
  - {name: after, handler: tasker.echo, depends_on_step: ruby}`)
	b.start()
	task := b.enqueue("keeps", `{}`)
	<-g.running
	b.until("ruby is out and the other waits", func() bool {
		return b.step(task, "ruby").State == tasker.StepEnqueued && b.step(task, "waits").State == tasker.StepWaitingForRetry
	})
	b.must(b.store.SkipStep(t.Context(), b.step(task, "ruby").StepID, ada))
	b.must(b.store.RetryStep(t.Context(), b.step(task, "waits").StepID, nil, ada))
	b.until("what waited for them is done", func() bool {
		return b.step(task, "after").State == tasker.StepComplete && b.step(task, "waits").State == tasker.StepComplete
	})
	close(g.release)
	b.finish()
	b.want("complete", `SELECT state FROM tasker.tasks`)
	b.want("complete 1 0", `SELECT concat_ws(' ', state, attempts, losses) FROM tasker.steps WHERE name = 'long'`)
	if g.calls.Load() != 1 || g.stopped.Load() != 0 {
		t.Errorf("the long handler was called %d times and stopped %d times", g.calls.Load(), g.stopped.Load())
	}
}

// A worker that doesn't hear of the verb finds out by itself.
func TestAVerbWhoseNotificationIsLostIsNoticed(t *testing.T) {
	b := setup(t)
	g := newGate(b, "gate")
	b.register(`
name: unheard
namespace_name: test
step_templates:
  - {name: long, handler: gate}
  - {name: ruby, handler_class: Echo}
  - {name: after, handler: tasker.echo, depends_on_step: ruby}`)
	b.start()
	task := b.enqueue("unheard", `{}`)
	<-g.running
	step := b.dispatchedStep(task, "ruby")
	b.exec(`UPDATE tasker.steps SET state = 'skipped' WHERE step_id = $1`, step)
	b.exec(`DELETE FROM tasker.dispatches WHERE step_id = $1`, step)
	b.exec(`UPDATE tasker.tasks SET epoch = epoch + 1 WHERE task_id = $1`, task) // as a verb does, but without a notification
	b.until("the step behind it is complete", func() bool { return b.step(task, "after").State == tasker.StepComplete })
	close(g.release)
	b.finish()
	b.want("complete 1", `SELECT concat_ws(' ', state, (SELECT attempts FROM tasker.steps WHERE name = 'long')) FROM tasker.tasks`)
}

func (b *bundle) dispatchedStep(task int64, name string) int64 {
	b.Helper()
	b.until(name+" is out", func() bool { return b.step(task, name).State == tasker.StepEnqueued })
	return b.step(task, name).StepID
}

func TestAPausedTaskStartsNothing(t *testing.T) {
	b := setup(t)
	g := newGate(b, "gate")
	b.register(`
name: pauses
namespace_name: test
step_templates:
  - {name: runs, handler: gate}
  - {name: after, handler: tasker.echo, depends_on_step: runs}`)
	b.start()
	task := b.enqueue("pauses", `{}`)
	<-g.running
	b.must(b.store.PauseTask(t.Context(), task, ada))
	b.must(b.store.PauseTask(t.Context(), task, ada)) // once is enough
	close(g.release)
	b.until("what ran has ended, and the task is given up", func() bool {
		return b.step(task, "runs").State == tasker.StepComplete && b.number(`SELECT count(*) FROM tasker.tasks WHERE owner IS NULL`) == 1
	})
	// A task that comes afterwards is done: the worker had its chance to go on.
	later := b.enqueue("pauses", `{}`)
	b.until("a later task is complete", func() bool { return b.text(`SELECT state FROM tasker.tasks WHERE task_id = $1`, later) == "complete" })
	b.want("pending 0", `SELECT concat_ws(' ', state, attempts) FROM tasker.steps WHERE task_id = $1 AND name = 'after'`, task)
	b.must(b.store.ResumeTask(t.Context(), task, ada))
	b.finish()
	b.want("complete,complete", `SELECT string_agg(state, ',') FROM tasker.tasks`)
	b.want("task.paused task.resumed", `SELECT string_agg(name, ' ' ORDER BY event_id) FROM tasker.events WHERE data ->> 'by' = 'ada'`)
}

func TestRunNowStartsWhatWasForLater(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	b.register(`
name: later
namespace_name: test
step_templates: [{name: only, handler: tasker.fail, handler_config: {times: 1}, retry: {base_seconds: 1000, cap_seconds: 1000}}]`)
	b.start()
	b.exec(`INSERT INTO tasker.tasks (namespace, name, run_at) VALUES ('test', 'one', now() + interval '1 day')`)
	early := int64(b.number(`SELECT max(task_id) FROM tasker.tasks`))
	b.must(b.store.SetTaskPriority(t.Context(), early, 1, ada))
	b.want("1 1", `SELECT concat_ws(' ', t.priority, j.priority) FROM tasker.tasks t, tasker.river_job j`)
	waits := b.enqueue("later", `{}`)
	b.until("it waits, given up", func() bool {
		return b.number(`SELECT count(*) FROM tasker.tasks t JOIN tasker.steps s USING (task_id) WHERE task_id = $1 AND owner IS NULL AND s.state = 'waiting_for_retry'`, waits) == 1
	})
	b.must(b.store.RunTaskNow(t.Context(), early, ada))
	b.must(b.store.RunTaskNow(t.Context(), waits, ada))
	b.finish()
	b.want("2", `SELECT count(*)::text FROM tasker.tasks WHERE state = 'complete'`)
}

func TestVerbsThatDoNotFitAreRefused(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	b.start()
	task := b.enqueue("one", `{}`)
	b.finish()
	ctx, step := t.Context(), b.step(task, "only").StepID
	for _, c := range []struct {
		what string
		err  error
		want string
	}{
		{"cancel", b.store.CancelTask(ctx, task, ada), "is complete: it cannot be cancelled any more"},
		{"retry", b.store.RetryTask(ctx, task, nil, ada), "is complete: only a task in error can be retried"},
		{"resolve", b.store.ResolveTask(ctx, task, ada), "is complete: only a task in error can be resolved by hand"},
		{"pause", b.store.PauseTask(ctx, task, ada), "is complete: there is nothing to pause"},
		{"resume", b.store.ResumeTask(ctx, task, ada), "is not paused"},
		{"run now", b.store.RunTaskNow(ctx, task, ada), "is complete: there is nothing to run"},
		{"priority", b.store.SetTaskPriority(ctx, task, 1, ada), "is complete: its priority does not matter any more"},
		{"priority 9", b.store.SetTaskPriority(ctx, task, 9, ada), "a priority is a number from 1, which goes first, to 4, not 9"},
		{"retry step", b.store.RetryStep(ctx, step, nil, ada), "(only) belongs to task 1, which is complete"},
		{"skip step", b.store.SkipStep(ctx, step, ada), "(only) belongs to task 1, which is complete"},
		{"resolve step", b.store.ResolveStep(ctx, step, json.RawMessage(`1`), ada), "(only) belongs to task 1, which is complete"},
		{"retry with a bad context", b.store.RetryTask(ctx, task, json.RawMessage(`[1]`), ada), "only a task in error"},
	} {
		var refused *store.RefusedError
		if !errors.As(c.err, &refused) || !strings.Contains(refused.Message, c.want) {
			t.Errorf("%s: got %v, want … %s …", c.what, c.err, c.want)
		}
	}
	for what, err := range map[string]error{"task": b.store.CancelTask(ctx, 999, ada), "step": b.store.SkipStep(ctx, 999, ada)} {
		if !errors.Is(err, store.ErrNotFound) || !strings.Contains(err.Error(), "there is no "+what+" 999") {
			t.Errorf("an unknown %s: got %v", what, err)
		}
	}
	b.want("0", `SELECT count(*)::text FROM tasker.events WHERE data ? 'by'`)
}

func TestFailurePolicies(t *testing.T) {
	b := setup(t)
	const steps = `
max_parallel_steps: 1
step_templates:
  - {name: fails, handler: tasker.fail, handler_config: {permanent: true}}
  - {name: waits, handler: tasker.fail, handler_config: {times: 1}, retry: {base_seconds: 0.05}}
  - {name: beside, handler: tasker.echo, depends_on_step: waits}`
	b.register("name: continue\nnamespace_name: test" + steps)
	b.register("name: fail_fast\nnamespace_name: test\non_failure: fail_fast" + steps)
	b.register(`
name: optional
namespace_name: test
step_templates:
  - {name: nice, handler: tasker.fail, default_retry_limit: 2, retry: {base_seconds: 0.01}, skippable: true}
  - {name: after, handler: tasker.echo, depends_on_step: nice}`)
	b.start()
	goesOn, stops, optional := b.enqueue("continue", `{}`), b.enqueue("fail_fast", `{}`), b.enqueue("optional", `{}`)
	b.finish()
	const states = `SELECT t.state || ': ' || string_agg(s.state, ',' ORDER BY position) FROM tasker.tasks t JOIN tasker.steps s USING (task_id) WHERE task_id = $1 GROUP BY t.state`
	b.want("error: error,complete,complete", states, goesOn)
	b.want("error: error,pending,pending", states, stops)
	b.want("complete: skipped,complete", states, optional)
	b.want(`2 {"dependencies": {"nice": null}}`, `SELECT string_agg(coalesce(s.result::text, s.attempts::text), ' ' ORDER BY position) FROM tasker.steps s WHERE task_id = $1`, optional)
}

func TestStepsAreBypassedAtEnqueue(t *testing.T) {
	b := setup(t)
	b.register(`
name: bypassed
namespace_name: test
step_templates:
  - {name: a, handler: tasker.echo, bypassable: true}
  - {name: b, handler: tasker.fail, depends_on_step: a, bypassable: true}
  - {name: c, handler: tasker.echo, depends_on_step: b, bypassable: true}`)
	b.register(payment)
	b.start()
	_, err := b.pool.Exec(t.Context(), `INSERT INTO tasker.tasks (namespace, name, bypass_steps) VALUES ('test', 'payment', '{fraud_check}')`)
	if err == nil || !strings.Contains(err.Error(), "bypass_steps names fraud_check, which tasks of test/payment@1.0.0 must not leave out") {
		t.Errorf("a step that no task may leave out: got %v", err)
	}
	_, err = b.pool.Exec(t.Context(), `INSERT INTO tasker.tasks (namespace, name, bypass_steps) VALUES ('test', 'bypassed', '{b,x}')`)
	if err == nil || !strings.Contains(err.Error(), "bypass_steps names x, which is no step of test/bypassed@0.1.0; its steps are: a, b, c") {
		t.Errorf("an unknown step: got %v", err)
	}
	b.exec(`INSERT INTO tasker.tasks (namespace, name, bypass_steps) VALUES ('test', 'bypassed', '{b}')`)
	b.exec(`SELECT tasker.enqueue_task('test', 'bypassed', bypass_steps => '{a,b,c}')`)
	b.finish()
	b.want("complete: complete,skipped,complete; complete: skipped,skipped,skipped", `SELECT string_agg(line, '; ' ORDER BY line) FROM (
		SELECT t.state || ': ' || string_agg(s.state, ',' ORDER BY position) AS line FROM tasker.tasks t JOIN tasker.steps s USING (task_id) GROUP BY task_id, t.state) x`)
	b.want("4", `SELECT count(*)::text FROM tasker.events WHERE name = 'step.skipped' AND data ->> 'reason' = 'bypassed at enqueue'`)
}

// An event of an operator's verb names the login, whatever "by" says, and a context that
// was replaced is in the event: as it is, or as a hash.
func TestAVerbRecordsItsLoginAndWhatItReplaced(t *testing.T) {
	b := setup(t)
	b.must(migrations.Roles(t.Context(), b.pool))
	b.register(oneGoStep)
	b.enqueue("one", `{"account": "a"}`)
	b.exec(`UPDATE tasker.tasks SET state = 'in_progress'; UPDATE tasker.tasks SET state = 'error';
		UPDATE tasker.steps SET state = 'in_progress'; UPDATE tasker.steps SET state = 'error'`)
	conn, err := pgx.Connect(t.Context(), b.user("tasker_operator"))
	b.must(err)
	t.Cleanup(func() { b.must(conn.Close(context.WithoutCancel(t.Context()))) })
	as := func(sql string, args ...any) {
		t.Helper()
		_, err := conn.Exec(t.Context(), sql, args...)
		b.must(err)
	}
	as(`SELECT tasker.retry_task(1, 'the pope', 'why not', '{"account": "b"}')`)
	b.want(`{"by": "the pope", "to": {"account": "b"}, "from": {"account": "a"}, "login": "`+conn.Config().User+`", "reason": "why not"}`,
		`SELECT data::text FROM tasker.events WHERE name = 'task.context_replaced'`)
	b.exec(`UPDATE tasker.steps SET state = 'in_progress'; UPDATE tasker.steps SET state = 'error'`)
	as(`SELECT tasker.retry_step(1, 'the pope', NULL, jsonb_build_object('account', repeat('x', 5000)))`)
	b.want("true", `SELECT (data - 'by' - 'login' = jsonb_build_object(
			'from_sha256', encode(sha256('{"account": "b"}'), 'hex'), 'from_bytes', 16, 'to_bytes', 5015,
			'to_sha256', encode(sha256(convert_to(t.context::text, 'UTF8')), 'hex')))::text
		FROM tasker.events e JOIN tasker.tasks t USING (task_id) WHERE e.name = 'task.context_replaced' ORDER BY e.event_id DESC LIMIT 1`)

	for _, sql := range []string{
		`SELECT tasker.set_task_priority(1, 1::smallint, 'the pope')`, `SELECT tasker.pause_task(1, 'the pope')`, `SELECT tasker.resume_task(1, 'the pope')`,
		`SELECT tasker.cancel_task(1, 'the pope')`, `SELECT tasker.set_limit('template', 'test/one', max_attempts => 2, who => 'the pope')`,
		`SELECT tasker.pause('template', 'test/one', 'the pope')`, `SELECT tasker.resume('template', 'test/one', 'the pope')`,
		`SELECT tasker.set_webhook('shop', 'https://shop.example:8443/in?token=s3cret', '{*}', 'SHOP', 'the pope')`, `SELECT tasker.remove_webhook('shop')`,
	} {
		as(sql)
	}
	b.want("", `SELECT coalesce(string_agg(name, ' '), '') FROM tasker.events WHERE data ? 'by' AND data ->> 'login' IS DISTINCT FROM $1`, conn.Config().User)
	b.want("14", `SELECT count(*)::text FROM tasker.events WHERE data ->> 'login' = $1`, conn.Config().User)
	b.want(`{"by": "the pope", "host": "shop.example:8443", "name": "shop", "login": "`+conn.Config().User+`", "patterns": ["*"], "secret_env": "SHOP"}`,
		`SELECT data::text FROM tasker.events WHERE name = 'workflow.webhook_set'`)
}
