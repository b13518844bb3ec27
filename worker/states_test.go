package worker_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/taskerhq/tasker"
)

// Transitions that the tables of states.go allow and that no door leads
// through, each with the reason. A door that is built takes its entry from
// here: the test below fails until it does.
var withoutADoor = map[string]string{
	"step error → cancelled": "cancelling a task leaves its failed steps in error, and no verb cancels a single step",
}

// The observer is the one thing here that looks behind the doors. It only looks.
const observer = `
CREATE TABLE public.seen (
    seen_id bigint GENERATED ALWAYS AS IDENTITY, kind text, task_id bigint, step_id bigint, was text, becomes text);
CREATE FUNCTION public.see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO public.seen (kind, task_id, step_id, was, becomes)
    VALUES (TG_ARGV[0], NEW.task_id, (to_jsonb(NEW) ->> 'step_id')::bigint, OLD.state, NEW.state);
    RETURN NULL;
END $$;
CREATE TRIGGER see AFTER UPDATE ON tasker.tasks FOR EACH ROW WHEN (OLD.state <> NEW.state) EXECUTE FUNCTION public.see('task');
CREATE TRIGGER see AFTER UPDATE ON tasker.steps FOR EACH ROW WHEN (OLD.state <> NEW.state) EXECUTE FUNCTION public.see('step');`

// Steps with the queue "hand" are the test's: no Sidekiq serves it, so the test
// makes the three calls of docs/protocol.md itself, in its own time. The rest
// runs in the worker and in a real Sidekiq.
const everyState = `
name: by_hand
namespace_name: test
step_templates: [{name: only, handler_class: Echo, queue: hand, retry: {base_seconds: 1000, cap_seconds: 1000}}]
---
name: in_sidekiq
namespace_name: test
step_templates:
  - {name: recovers, handler_class: Fail, handler_config: {times: 1}, retry: {base_seconds: 0.01}}
  - {name: fails, handler_class: Fail, handler_config: {permanent: true}}
---
name: in_go
namespace_name: test
step_templates:
  - {name: recovers, handler: tasker.fail, handler_config: {times: 1}, retry: {base_seconds: 0.01}}
  - {name: fails, handler: tasker.fail, handler_config: {permanent: true}}
---
name: optional
namespace_name: test
step_templates:
  - {name: go, handler: tasker.fail, handler_config: {permanent: true}, skippable: true}
  - {name: ruby, handler_class: Fail, handler_config: {permanent: true}, skippable: true}`

// Every edge of both state machines is taken by a real task, through the doors
// that apps, handlers and operators have: INSERT, the calls of a handler, the
// verbs. And each transition leaves exactly one event, which names it.
func TestEveryTransitionIsReachedThroughAPublicDoor(t *testing.T) {
	b := setup(t)
	b.exec(observer)
	for yaml := range strings.SplitSeq(everyState, "---") {
		b.register(yaml)
	}
	b.start()
	b.sidekiq()
	// Its deadline passes before its time has come.
	b.exec(`INSERT INTO tasker.tasks (namespace, name, run_at, deadline) VALUES ('test', 'by_hand', now() + interval '1 day', now() + interval '100 milliseconds')`)
	b.finish()
	b.want("error pending 0", `SELECT concat_ws(' ', t.state, s.state, s.attempts) FROM tasker.tasks t JOIN tasker.steps s USING (task_id)`)

	// A step is brought to each state that it can be moved from by hand …
	byHand := func() (task, step int64) {
		task = b.enqueue("by_hand", `{}`)
		return task, b.dispatched(task, 1)
	}
	mustReport := func(step int64, report string) {
		// Made by a worker of the version before, an attempt may end before it starts.
		b.exec(`UPDATE tasker.dispatches SET ticket = NULL WHERE step_id = $1 AND started_at IS NULL`, step)
		t.Helper()
		if ok, reason := b.report(report, step); !ok {
			t.Fatalf("%s was refused: %s", report, reason)
		}
	}
	const (
		succeeds = `{"step_id": %d, "attempt": 1, "outcome": "success", "result": 1}`
		fails    = `{"step_id": %d, "attempt": 1, "outcome": "failure", "failure": {"class": "X", "message": "fails"}}`
		forGood  = `{"step_id": %d, "attempt": 1, "outcome": "failure", "failure": {"class": "X", "message": "fails", "permanent": true}}`
		lost     = `{"step_id": %d, "attempt": 1, "outcome": "lost"}`
	)
	mustStart := func(step int64) {
		t.Helper()
		b.want("started", `SELECT standin.start_attempt($1, 1) ->> 'status'`, step)
	}
	reaches := func(task int64, state tasker.StepState) {
		t.Helper()
		b.until("the step is "+string(state), func() bool { return b.step(task, "only").State == state })
	}
	bringTo := map[tasker.StepState]func() (task, step int64){
		tasker.StepPending: func() (task, step int64) {
			b.must(b.pool.QueryRow(t.Context(), `INSERT INTO tasker.tasks (namespace, name, run_at)
				VALUES ('test', 'by_hand', now() + interval '1 day') RETURNING task_id`).Scan(&task))
			return task, b.step(task, "only").StepID
		},
		tasker.StepEnqueued: byHand,
		tasker.StepInProgress: func() (task, step int64) {
			task, step = byHand()
			mustStart(step)
			return task, step
		},
		tasker.StepWaitingForRetry: func() (task, step int64) {
			task, step = byHand()
			mustReport(step, fails)
			reaches(task, tasker.StepWaitingForRetry)
			return task, step
		},
		tasker.StepError: func() (task, step int64) {
			task, step = byHand()
			mustReport(step, forGood)
			reaches(task, tasker.StepError)
			return task, step
		},
	}
	// … and moved on by each verb that can.
	verbs := []struct {
		name, sql string
		comesTo   string // the task, and its step
	}{
		{"skip the step", `SELECT tasker.skip_step($2, 'ada') FROM (SELECT $1::bigint) task`, "complete, skipped"},
		{"resolve the step", `SELECT tasker.resolve_step($2, '7', 'ada') FROM (SELECT $1::bigint) task`, "complete, resolved_manually"},
		{"cancel the task", `SELECT tasker.cancel_task($1, 'ada') FROM (SELECT $2::bigint) step`, "cancelled, cancelled"},
	}
	for _, state := range slices.Sorted(maps.Keys(bringTo)) {
		for _, verb := range verbs {
			task, step := bringTo[state]()
			b.exec(verb.sql, task, step)
			if state == tasker.StepPending && verb.name != "cancel the task" {
				b.exec(`SELECT tasker.run_task_now($1)`, task) // it was for tomorrow
			}
			b.finish()
			want := verb.comesTo
			if state == tasker.StepError {
				want = strings.Replace(want, "cancelled, cancelled", "cancelled, error", 1) // what has failed has failed
			}
			if got := b.text(`SELECT concat_ws(', ', t.state, s.state) FROM tasker.tasks t JOIN tasker.steps s USING (task_id) WHERE task_id = $1`, task); got != want {
				t.Errorf("%s, which was %s: task and step came to %q, want %q", verb.name, state, got, want)
			}
		}
	}

	// What handlers do: report without a start, or after one.
	for _, started := range []bool{false, true} {
		for _, report := range []string{succeeds, fails, forGood, lost} {
			task, step := byHand()
			if started {
				mustStart(step)
			}
			mustReport(step, report)
			if report == fails { // its retry is a thousand seconds away
				reaches(task, tasker.StepWaitingForRetry)
				b.exec(`SELECT tasker.retry_step($1, 'ada')`, step)
			}
			if report == fails || report == lost {
				b.dispatched(task, 2)
				mustReport(step, strings.Replace(succeeds, `"attempt": 1`, `"attempt": 2`, 1))
			}
		}
	}

	// What runs by itself: in the worker, in Sidekiq, and again after an
	// operator's retry.
	for _, name := range []string{"in_go", "in_sidekiq", "optional"} {
		b.enqueue(name, `{}`)
	}
	b.finish()
	b.want("in_go error, in_sidekiq error, optional complete", `SELECT string_agg(concat_ws(' ', name, state), ', ' ORDER BY name) FROM tasker.tasks WHERE name <> 'by_hand'`)
	b.exec(`SELECT tasker.retry_task(task_id, 'ada') FROM tasker.tasks WHERE name LIKE 'in\_%'`)
	b.finish()
	b.exec(`SELECT tasker.resolve_task(task_id, 'ada') FROM tasker.tasks WHERE name LIKE 'in\_%'`)

	b.everyEdgeWasTaken()
	b.eventsTellEachTransition()
}

// everyEdgeWasTaken holds what the observer saw against the tables of states.go.
func (b *bundle) everyEdgeWasTaken() {
	b.Helper()
	missing := map[string]bool{}
	for was, list := range tasker.TaskTransitions {
		for _, becomes := range list {
			missing[fmt.Sprintf("task %s → %s", was, becomes)] = true
		}
	}
	for was, list := range tasker.StepTransitions {
		for _, becomes := range list {
			missing[fmt.Sprintf("step %s → %s", was, becomes)] = true
		}
	}
	edges := len(missing)
	for edge := range strings.SplitSeq(b.text(`SELECT string_agg(DISTINCT format('%s %s → %s', kind, was, becomes), ',') FROM public.seen`), ",") {
		if reason, listed := withoutADoor[edge]; listed {
			b.Errorf("%s was seen, although it is listed as unreachable (%s): take it off the list", edge, reason)
		} else if !missing[edge] {
			b.Errorf("%s was seen, and is no transition of states.go", edge)
		}
		delete(missing, edge)
	}
	for edge := range withoutADoor {
		delete(missing, edge)
	}
	for _, edge := range slices.Sorted(maps.Keys(missing)) {
		b.Errorf("%s was not seen", edge)
	}
	b.Logf("%d transitions, %d of them without a door", edges, len(withoutADoor))
}

// eventsTellEachTransition replays the events: what they say happened to each
// task and step, one after the other, is what did.
func (b *bundle) eventsTellEachTransition() {
	b.Helper()
	b.want("nothing", `WITH words(kind, name, becomes) AS (VALUES
			('task', 'task.start_requested', 'in_progress'), ('task', 'task.retry_requested', 'in_progress'),
			('task', 'task.completed', 'complete'), ('task', 'task.failed', 'error'),
			('task', 'task.cancelled', 'cancelled'), ('task', 'task.resolved_manually', 'resolved_manually'),
			('step', 'step.initialize_requested', 'pending'), ('step', 'step.execution_requested', 'enqueued'),
			('step', 'step.handle', 'in_progress'), ('step', 'step.completed', 'complete'),
			('step', 'step.retry_requested', 'waiting_for_retry'), ('step', 'step.failed', 'error'),
			('step', 'step.cancelled', 'cancelled'), ('step', 'step.skipped', 'skipped'),
			('step', 'step.resolved_manually', 'resolved_manually')),
		told AS (
			SELECT w.kind, CASE w.kind WHEN 'task' THEN e.task_id ELSE e.step_id END AS id, string_agg(w.becomes, ' > ' ORDER BY e.event_id) AS path
			FROM tasker.events e JOIN words w USING (name) GROUP BY 1, 2),
		done AS (
			SELECT kind, coalesce(step_id, task_id) AS id, string_agg(becomes, ' > ' ORDER BY seen_id) AS path
			FROM public.seen GROUP BY 1, 2)
		SELECT coalesce(string_agg(format('%s %s: went %s; events say %s', kind, id, done.path, told.path), E'\n'), 'nothing')
		FROM done FULL JOIN told USING (kind, id) WHERE done.path IS DISTINCT FROM told.path`)
}
