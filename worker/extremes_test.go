package worker_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/taskerhq/tasker"
)

// Every verb, in SQL, with the id of a task or a step.
var (
	taskVerbs = map[string]string{
		"cancel":   `SELECT tasker.cancel_task($1, 'ada')`,
		"retry":    `SELECT tasker.retry_task($1, 'ada')`,
		"resolve":  `SELECT tasker.resolve_task($1, 'ada')`,
		"pause":    `SELECT tasker.pause_task($1, 'ada')`,
		"resume":   `SELECT tasker.resume_task($1, 'ada')`,
		"run now":  `SELECT tasker.run_task_now($1, 'ada')`,
		"priority": `SELECT tasker.set_task_priority($1, 1::smallint, 'ada')`,
	}
	stepVerbs = map[string]string{
		"retry step":   `SELECT tasker.retry_step($1, 'ada')`,
		"skip step":    `SELECT tasker.skip_step($1, 'ada')`,
		"resolve step": `SELECT tasker.resolve_step($1, '1', 'ada')`,
	}
)

// everything is what a refused call must leave as it was.
func (b *bundle) everything() string {
	b.Helper()
	return b.text(`SELECT md5(concat_ws('|',
		(SELECT string_agg(t::text, '' ORDER BY task_id) FROM tasker.tasks t), (SELECT string_agg(s::text, '' ORDER BY step_id) FROM tasker.steps s),
		(SELECT string_agg(e::text, '' ORDER BY event_id) FROM tasker.events e), (SELECT count(*) FROM tasker.river_job), (SELECT count(*) FROM tasker.dispatches)))`)
}

// No verb moves a task that has come to its end, or one of its steps; and what
// doesn't exist is said not to. Nothing is half done.
func TestVerbsOnWhatIsOverOrDoesNotExistAreRefused(t *testing.T) {
	b := setup(t)
	b.register(oneGoStep)
	b.register(`
name: fails
namespace_name: test
step_templates:
  - {name: only, handler: tasker.fail, handler_config: {permanent: true}}
  - {name: behind, handler: tasker.echo, depends_on_step: only}`)
	b.start()
	complete, failed := b.enqueue("one", `{}`), b.enqueueMany("fails", `{}`, 4)
	b.finish()
	resolved, cancelled, mended, inError := failed[0], failed[1], failed[2], failed[3]
	b.must(b.store.ResolveTask(t.Context(), resolved, ada))
	b.must(b.store.CancelTask(t.Context(), cancelled, ada))
	b.must(b.store.ResolveStep(t.Context(), b.step(mended, "only").StepID, json.RawMessage(`1`), ada))
	b.finish()
	before := b.everything()

	refused := func(sql string, id int64, code string) {
		t.Helper()
		_, err := b.pool.Exec(t.Context(), sql, id)
		if err == nil || !strings.Contains(err.Error(), "SQLSTATE "+code) {
			t.Errorf("%s of %d: got %v, want SQLSTATE %s", sql, id, err, code)
		}
	}
	const doesNotFit, noSuch = "TK008", "P0002"
	for _, task := range []int64{complete, resolved, cancelled, mended} {
		for _, sql := range taskVerbs {
			refused(sql, task, doesNotFit)
		}
		for _, sql := range stepVerbs {
			refused(sql, b.step(task, "only").StepID, doesNotFit)
		}
	}
	for _, verb := range []string{"pause", "resume", "run now", "priority"} {
		refused(taskVerbs[verb], inError, doesNotFit)
	}
	refused(stepVerbs["retry step"], b.step(inError, "behind").StepID, doesNotFit) // it has not failed
	for _, id := range []int64{0, -1, 999, 1 << 62} {
		for _, sql := range taskVerbs {
			refused(sql, id, noSuch)
		}
		for _, sql := range stepVerbs {
			refused(sql, id, noSuch)
		}
	}
	for name, sql := range taskVerbs {
		if _, err := b.pool.Exec(t.Context(), sql, nil); err == nil || !strings.Contains(err.Error(), "there is no task NULL") {
			t.Errorf("%s of NULL: got %v", name, err)
		}
	}
	if after := b.everything(); after != before {
		t.Error("refused verbs have changed something")
	}
}

// However a step was settled by hand, its attempt that is still out can neither
// start nor report; what comes is recorded.
func TestAnAttemptOfASettledStepIsRefused(t *testing.T) {
	b := setup(t)
	b.register(oneRubyStep)
	b.start()
	for verb, state := range map[string]string{"skip step": "skipped", "resolve step": "resolved_manually", "": "cancelled"} {
		for _, started := range []bool{false, true} {
			task := b.enqueue("ruby", `{}`)
			step := b.dispatched(task, 1)
			if started {
				b.want("started", `SELECT standin.start_attempt($1, 1) ->> 'status'`, step)
			}
			if verb != "" {
				b.exec(stepVerbs[verb], step)
			} else {
				b.must(b.store.CancelTask(t.Context(), task, ada))
			}
			b.want("refused attempt 1 of step "+fmt.Sprint(step)+" (only) is "+state, `SELECT concat_ws(' ', r ->> 'status', r ->> 'reason') FROM standin.start_attempt($1, 1) r`, step)
			for _, outcome := range []string{`"success", "result": "late"`, `"failure", "failure": {"message": "late"}`, `"lost"`} {
				if ok, reason := b.report(`{"step_id": %d, "attempt": 1, "outcome": `+outcome+`}`, step); ok || !strings.HasSuffix(reason, "is "+state) {
					t.Errorf("%s for a step that is %s: accepted %t, %q", outcome, state, ok, reason)
				}
			}
			b.want("3", `SELECT count(*)::text FROM tasker.events WHERE step_id = $1 AND name = 'step.report_refused'`, step)
			b.want(state, `SELECT state FROM tasker.steps WHERE step_id = $1 AND result IS DISTINCT FROM '"late"'`, step)
		}
	}
	b.finish()
	b.checkHistory()
}

// A new version drops steps that running tasks need. They keep the version that
// they started with, down to its steps, and so does an operator's retry.
func TestRunningTasksKeepTheStepsThatANewVersionDrops(t *testing.T) {
	b := setup(t)
	g := newGate(b, "gate")
	b.register(`
name: shrinks
namespace_name: test
version: 1.0.0
step_templates:
  - {name: runs, handler: gate}
  - {name: dropped, handler_class: Echo, handler_config: {from: old}, depends_on_step: runs}
  - {name: fails, handler: tasker.fail, handler_config: {times: 1}, default_retry_limit: 1, depends_on_step: dropped}`)
	b.start()
	b.sidekiq()
	old := b.enqueue("shrinks", `{}`)
	<-g.running
	b.register(`
name: shrinks
namespace_name: test
version: 1.1.0
step_templates: [{name: fails, handler: tasker.echo, handler_config: {from: new}}]`)
	fresh := b.enqueue("shrinks", `{}`)
	b.until("the new task is complete", func() bool {
		return b.text(`SELECT state FROM tasker.tasks WHERE task_id = $1`, fresh) == "complete"
	})
	close(g.release)
	b.finish()
	const steps = `SELECT version || ' ' || t.state || ': ' || string_agg(concat_ws(' ', s.name, s.state, s.result ->> 'from'), ', ' ORDER BY position)
		FROM tasker.tasks t JOIN tasker.steps s USING (task_id) WHERE task_id = $1 GROUP BY version, t.state`
	b.want("1.1.0 complete: fails complete new", steps, fresh)
	b.want("1.0.0 error: runs complete, dropped complete old, fails error", steps, old)
	// The retry, after the new version came, is one of the old step.
	b.must(b.store.RetryTask(t.Context(), old, nil, ada))
	b.finish()
	b.want("1.0.0 error: runs complete, dropped complete old, fails error", steps, old)
	b.must(b.store.SkipStep(t.Context(), b.step(old, "fails").StepID, ada))
	b.finish()
	b.want("1.0.0 complete: runs complete, dropped complete old, fails skipped", steps, old)
}

// The largest template: one step, ten thousand behind it, one behind those.
func TestTenThousandStepsRun(t *testing.T) {
	b := setup(t)
	b.handlers.Register("count", func(_ context.Context, a *tasker.Attempt) (any, error) { return len(a.Dependencies), nil })
	const width = tasker.MaxSteps - 2
	var yaml strings.Builder
	yaml.WriteString("name: fan\nnamespace_name: test\nmax_parallel_steps: 1000\nstep_templates:\n  - {name: first, handler: count}\n")
	names := make([]string, width)
	for i := range names {
		names[i] = fmt.Sprintf("s%d", i)
		fmt.Fprintf(&yaml, "  - {name: %s, handler: count, depends_on_step: first}\n", names[i])
	}
	fmt.Fprintf(&yaml, "  - {name: last, handler: count, depends_on_steps: [%s]}\n", strings.Join(names, ", "))
	b.register(yaml.String())
	b.start()
	task := b.enqueue("fan", `{}`)
	b.finish()
	b.exec(`ANALYZE`) // the questions below join a lot
	b.want("complete 10002 10002", `SELECT concat_ws(' ', t.state, count(*), sum(s.attempts)) FROM tasker.tasks t JOIN tasker.steps s USING (task_id) WHERE s.state = 'complete' GROUP BY t.state`)
	b.want("0 1 10000", `SELECT string_agg(result::text, ' ' ORDER BY min) FROM (
		SELECT result, min(position) FROM tasker.steps WHERE task_id = $1 GROUP BY result) x`, task)
	b.checkHistory()
}
