package worker_test

import (
	"context"
	"testing"
	"time"

	"github.com/taskerhq/tasker"
)

// A handler that hangs is found by its heartbeat, long before any timeout, and
// the next attempt goes on from where it had come to.
func TestAGoAttemptWhoseHeartbeatStopsFailsAndTheNextGoesOnFromItsProgress(t *testing.T) {
	b := setup(t)
	deaf := make(chan struct{})
	t.Cleanup(func() { close(deaf) })
	b.handlers.Register("import", func(ctx context.Context, a *tasker.Attempt) (any, error) {
		if a.Progress != nil {
			return a.Progress, nil
		}
		for n := 1; n <= 3; n++ { // the last ones within a second: kept when the attempt ends
			if err := a.Heartbeat(map[string]int{"rows": n * 100}); err != nil {
				return nil, err
			}
		}
		<-deaf // hangs, whatever its context says
		return nil, nil
	})
	b.register(`
name: import
namespace_name: test
step_templates: [{name: rows, handler: import, heartbeat_seconds: 0.2, retry: {base_seconds: 0.01}}]`)
	b.start()
	task := b.enqueue("import", `{}`)
	b.finish()
	s := b.step(task, "rows")
	if s.State != tasker.StepComplete || s.Attempts != 2 || string(s.Result) != `{"rows": 300}` {
		t.Errorf("%s after %d attempts with %s", s.State, s.Attempts, s.Result)
	}
	if f := b.failure(task, "rows"); f.Code != tasker.CodeHeartbeatTimeout {
		t.Errorf("the first attempt failed with %q: %s", f.Code, f.Message)
	}
}

// One that beats is never taken away, however long it runs.
func TestAnAttemptThatBeatsIsLeftAlone(t *testing.T) {
	b := setup(t)
	b.handlers.Register("long", func(ctx context.Context, a *tasker.Attempt) (any, error) {
		for range 40 {
			if err := a.Heartbeat(nil); err != nil {
				return nil, err
			}
			time.Sleep(25 * time.Millisecond) // the work
		}
		return "done", nil
	})
	b.register(`
name: long
namespace_name: test
step_templates: [{name: only, handler: long, heartbeat_seconds: 0.5, default_retry_limit: 1}]`)
	b.start()
	task := b.enqueue("long", `{}`)
	b.finish()
	if s := b.step(task, "only"); s.State != tasker.StepComplete || s.Attempts != 1 {
		t.Errorf("%s after %d attempts: %s", s.State, s.Attempts, s.Error)
	}
}

// What the database can't hold is the handler's to know, and nobody else's.
func TestProgressThatCannotBeKeptIsRefusedToItsHandlerAlone(t *testing.T) {
	b := setup(t)
	b.handlers.Register("beats", func(_ context.Context, a *tasker.Attempt) (any, error) {
		progress := map[string]any{"good": []int{1}, "bad": "\x00"}[a.Step] // jsonb has no NUL
		return map[bool]string{true: "kept", false: "refused"}[a.Heartbeat(progress) == nil], nil
	})
	b.register(`
name: beats
namespace_name: test
step_templates:
  - {name: good, handler: beats}
  - {name: bad, handler: beats}`)
	b.start()
	task := b.enqueue("beats", `{}`)
	b.finish()
	b.want(`"kept" "refused"`, `SELECT string_agg(result::text, ' ' ORDER BY position) FROM tasker.steps WHERE task_id = $1`, task)
	b.want(`[1]`, `SELECT progress::text FROM tasker.steps WHERE task_id = $1 AND name = 'good'`, task)
}

const watched = `
name: watched
namespace_name: test
step_templates: [{name: only, handler_class: Echo, heartbeat_seconds: 0.3, retry: {base_seconds: 0.01}}]`

// The same for a process that speaks the protocol; here it does not die, it only
// says nothing any more.
func TestARubyAttemptWhoseHeartbeatStopsIsTakenBack(t *testing.T) {
	b := setup(t)
	b.register(watched)
	b.start()
	task := b.enqueue("watched", `{}`)
	step := b.dispatched(task, 1)
	process := b.number(`SELECT tasker.register_process('a test')`)
	b.want("started", `SELECT standin.start_attempt($1, 1, $2) ->> 'status'`, step, process)
	b.want("true", `SELECT standin.heartbeat($1, 1, '{"rows": 7}')::text`, step)
	b.want("false", `SELECT standin.heartbeat($1, 2)::text`, step)
	b.until("the attempt has failed and another is out", func() bool {
		b.exec(`SELECT tasker.process_beat($1)`, process)
		return b.number(`SELECT attempts FROM tasker.steps WHERE step_id = $1`, step) == 2
	})
	if f := b.failure(task, "only"); f.Code != tasker.CodeHeartbeatTimeout {
		t.Errorf("failed with %q: %s", f.Code, f.Message)
	}
	b.want("false", `SELECT standin.heartbeat($1, 1, '{"rows": 8}')::text`, step)
	b.want(`{"rows": 7}`, `SELECT standin.start_attempt($1, 2, $2) -> 'step' ->> 'progress'`, step, process)
	b.exec(`SELECT standin.report_results(jsonb_build_array(jsonb_build_object('step_id', $1::bigint, 'attempt', 2, 'outcome', 'success')))`, step)
	b.finish()
	b.want("complete", `SELECT state FROM tasker.tasks WHERE task_id = $1`, task)
}

func TestATaskWhoseDeadlinePassesFailsAndCanGoOn(t *testing.T) {
	b := setup(t)
	g := newGate(b, "gate")
	b.register(`
name: late
namespace_name: test
deadline_seconds: 0.5
step_templates:
  - {name: done, handler: tasker.echo}
  - {name: runs, handler: gate, depends_on_step: done}
  - {name: ruby, handler_class: Echo}
  - {name: waits, handler: tasker.fail, handler_config: {times: 1}, retry: {base_seconds: 100}}
  - {name: behind, handler: tasker.echo, depends_on_steps: [runs, ruby]}`)
	b.start()
	task := b.enqueue("late", `{}`)
	<-g.running
	step := b.dispatchedStep(task, "ruby")
	b.until("the task has failed", func() bool {
		return b.text(`SELECT state FROM tasker.tasks WHERE task_id = $1`, task) == "error"
	})
	b.until("the handler was told", func() bool { return g.stopped.Load() == 1 })
	b.want("task_deadline runs,ruby", `SELECT (error ->> 'code') || ' ' || array_to_string(ARRAY(SELECT jsonb_array_elements_text(error -> 'steps')), ',') FROM tasker.tasks WHERE task_id = $1`, task)
	b.want("done complete, runs error, ruby error, waits waiting_for_retry, behind pending",
		`SELECT string_agg(name || ' ' || state, ', ' ORDER BY position) FROM tasker.steps WHERE task_id = $1`, task)
	b.want("false", `SELECT (standin.report_results(jsonb_build_array(jsonb_build_object('step_id', $1::bigint, 'attempt', 1, 'outcome', 'success')))).accepted::text`, step)

	// An operator has it go on, in time this time.
	close(g.release)
	b.exec(`UPDATE tasker.task_templates SET deadline_seconds = 1000`)
	b.must(b.store.RetryTask(t.Context(), task, nil, ada))
	b.exec(`SELECT tasker.run_task_now($1)`, task)
	b.until("ruby is out again", func() bool { return len(b.queued("default")) == 2 })
	b.exec(`SELECT standin.report_results(jsonb_build_array(jsonb_build_object('step_id', $1::bigint, 'attempt', 2, 'outcome', 'success')))`, step)
	b.finish()
	b.want("complete true", `SELECT state || ' ' || (deadline > now() + interval '900 seconds') FROM tasker.tasks WHERE task_id = $1`, task)
	b.want("done 1, runs 2, ruby 2, waits 2, behind 1",
		`SELECT string_agg(name || ' ' || attempts, ', ' ORDER BY position) FROM tasker.steps WHERE task_id = $1`, task)
}

// Nobody needs to have taken the task.
func TestADeadlinePassesWithoutAWorkerThatTakesTheTask(t *testing.T) {
	b := setup(t)
	b.register(`{name: one, namespace_name: test, step_templates: [{name: only, handler: nobody.has.it}]}`)
	b.exec(`INSERT INTO tasker.tasks (namespace, name, deadline) VALUES ('test', 'one', now() + interval '10 milliseconds')`)
	b.enqueue("one", `{}`) // one without
	b.until("it has passed", func() bool { return b.number(`SELECT tasker.expire_tasks()`) == 1 })
	b.want("error task_deadline 0, pending  0", `SELECT string_agg(concat(t.state, ' ', t.error ->> 'code', ' ', s.attempts), ', ' ORDER BY task_id)
		FROM tasker.tasks t JOIN tasker.steps s USING (task_id)`)
	// The retry of a task that had no step in error.
	b.must(b.store.RetryTask(t.Context(), 1, nil, ada))
	b.want("in_progress without", `SELECT state || ' ' || coalesce(deadline::text, 'without') FROM tasker.tasks WHERE task_id = 1`)
}
