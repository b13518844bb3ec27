package worker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/handler"
)

// The traps that earlier workflow engines of this kind fell into, and the test
// that would have caught each.
//
//	 1  a failed step was listed as viable and never ran again    TestTrap1AFailedStepRunsAgain
//	 2  the delayed re-enqueue was unreachable; jobs raised       TestTrap2ADelayIsAJobForLaterAndNoJobRaises
//	 3a a permanent error was retried                             TestTrap3APermanentErrorEndsTheStep
//	 3b an error that may not be retried was waited for           TestTrap3AnErrorThatMayNotBeRetriedEndsTheTask
//	 4  a task with a cancelled step could not end                TestTrap4ATaskWithACancelledStepEnds
//	 5  a crashed worker's step was in progress for ever          TestTasksOfAKilledWorkerGoOnInAnother,
//	                                                              TestStepsOfAKilledSidekiqRunAgain
//	 6  a failure hid work that was ready, or the reverse         TestTrap6AFailureHidesNoWorkThatIsReady
//	 7a a task was enqueued beside its transaction                TestARolledBackInsertLeavesNothing
//	 7b a message was sent before its transition was committed    TestTrap7AJobIsNeverAheadOfItsCommit
//	 8  a result was written twice                                TestTrap8OfManyEqualReportsOneIsAccepted,
//	                                                              TestDuplicateAndStaleResultsAreRefusedAndRecorded
//	 9a messages carried data                                     TestTrap9AJobCarriesNamesAndNoData
//	 9b the context was copied into every step                    TestTrap9AJobCarriesNamesAndNoData
//	10a edges and steps could be doubled                          TestTrap10StepsAndEdgesExistOnce
//	10b the search for cycles looked at all workflows             TestTrap10CyclesAreAMatterOfOneTemplate
//	11  a delay was applied twice                                 TestTrap11AnAskedForDelayReplacesTheBackoff
//	12a events were published several times                       TestEveryTransitionIsReachedThroughAPublicDoor
//	12b events were published before their commit                 TestTrap12AnEventExistsWhenItsTransitionIsCommitted

// A step that failed is really tried again: its handler is called, not only its
// state moved. By the policy, and after an operator's retry.
func TestTrap1AFailedStepRunsAgain(t *testing.T) {
	b := setup(t)
	var calls atomic.Int64
	b.handlers.Register("third", func(context.Context, *tasker.Attempt) (any, error) {
		if n := calls.Add(1); n != 3 && n != 6 {
			return nil, errors.New("not yet")
		}
		return calls.Load(), nil
	})
	const template = `
name: %s
namespace_name: test
step_templates: [{name: only, handler: third, default_retry_limit: %d, retry: {backoff: fixed, base_seconds: 0.01}}]`
	b.register(fmt.Sprintf(template, "policy", 3))
	b.register(fmt.Sprintf(template, "operator", 1))
	b.start()
	task := b.enqueue("policy", `{}`)
	b.finish()
	b.want("complete 3 3", `SELECT concat_ws(' ', state, attempts, result) FROM tasker.steps WHERE task_id = $1`, task)
	b.want("1 2 3", `SELECT string_agg(attempt::text, ' ' ORDER BY event_id) FROM tasker.events WHERE task_id = $1 AND name = 'step.handle'`, task)

	task = b.enqueue("operator", `{}`)
	for range 2 {
		b.finish()
		b.want("error", `SELECT state FROM tasker.tasks WHERE task_id = $1`, task)
		b.must(b.store.RetryStep(t.Context(), b.step(task, "only").StepID, nil, ada))
	}
	b.finish()
	b.want("complete 3 6", `SELECT concat_ws(' ', state, attempts, result) FROM tasker.steps WHERE task_id = $1`, task)
}

// A delay that is too long to wait for in memory is a River job for later, which
// brings the task back; a task that fails is no failure of its River job.
func TestTrap2ADelayIsAJobForLaterAndNoJobRaises(t *testing.T) {
	b := setup(t)
	b.register(`
name: delayed
namespace_name: test
step_templates: [{name: only, handler: tasker.fail, handler_config: {times: 1, retry_after: 1.5}}]`)
	b.register(`
name: fails
namespace_name: test
step_templates: [{name: only, handler: tasker.fail, handler_config: {permanent: true}}]`)
	// Its first River job has come by then: one that comes later has the task looked
	// at once more, and given up once more.
	b.start(parkAfter(300 * time.Millisecond))
	delayed, fails := b.enqueue("delayed", `{}`), b.enqueue("fails", `{}`)
	b.finish()
	b.want("complete 2", `SELECT concat_ws(' ', state, attempts) FROM tasker.steps WHERE task_id = $1`, delayed)
	b.want("1", `SELECT count(*)::text FROM tasker.events WHERE task_id = $1 AND name = 'workflow.task_reenqueue_delayed'
		AND (data ->> 'delay_seconds')::float BETWEEN 1 AND 1.5`, delayed) // what was left when the task was given up
	const jobs = `SELECT string_agg(concat_ws(' ', state, attempt, cardinality(errors)), ', ') FROM tasker.river_job WHERE (args ->> 'task_id')::bigint = $1`
	b.until("River has filed the jobs", func() bool {
		return b.number(`SELECT count(*) FROM tasker.river_job WHERE state = 'completed'`) == 3
	})
	b.want("completed 1, completed 1", jobs, delayed)
	b.want("completed 1", jobs, fails)
}

// Permanent means at once, whatever is left of the limit.
func TestTrap3APermanentErrorEndsTheStep(t *testing.T) {
	b := setup(t)
	b.handlers.Register("permanent", func(context.Context, *tasker.Attempt) (any, error) {
		return nil, handler.Permanent("card_expired", errors.New("no retry mends this"))
	})
	b.register(`
name: permanent
namespace_name: test
step_templates:
  - {name: go, handler: permanent, default_retry_limit: 5, retry: {base_seconds: 0.01}}
  - {name: ruby, handler_class: Fail, handler_config: {permanent: true}, default_retry_limit: 5, retry: {base_seconds: 0.01}}`)
	b.start()
	b.sidekiq()
	b.enqueue("permanent", `{}`)
	b.finish()
	b.want("error go error 1, ruby error 1", `SELECT t.state || ' ' || string_agg(concat_ws(' ', s.name, s.state, s.attempts), ', ' ORDER BY position)
		FROM tasker.tasks t JOIN tasker.steps s USING (task_id) GROUP BY t.state`)
	b.want("0", `SELECT count(*)::text FROM tasker.events WHERE name = 'step.retry_requested'`)
}

// An ordinary error of a step that may not be retried leaves attempts over that
// will never come: the task must not wait for them.
func TestTrap3AnErrorThatMayNotBeRetriedEndsTheTask(t *testing.T) {
	b := setup(t)
	b.register(`
name: once
namespace_name: test
step_templates:
  - {name: go, handler: tasker.fail, default_retryable: false, default_retry_limit: 5}
  - {name: ruby, handler_class: Fail, handler_config: {times: 9}, default_retryable: false, default_retry_limit: 5}
  - {name: runs, handler: tasker.echo, default_retryable: false, default_retry_limit: 5}
  - {name: behind, handler: tasker.echo, depends_on_steps: [go, ruby]}`)
	b.start()
	b.sidekiq()
	b.enqueue("once", `{}`)
	b.finish()
	// A first attempt runs, whatever default_retryable says.
	b.want("error go error 1, ruby error 1, runs complete 1, behind pending 0",
		`SELECT t.state || ' ' || string_agg(concat_ws(' ', s.name, s.state, s.attempts), ', ' ORDER BY position)
		FROM tasker.tasks t JOIN tasker.steps s USING (task_id) GROUP BY t.state`)
	b.want(`["go", "ruby"]`, `SELECT (error -> 'steps')::text FROM tasker.tasks`)
}

// No verb cancels a single step, but the state machine has it, so the loop has
// to know what such a task comes to.
func TestTrap4ATaskWithACancelledStepEnds(t *testing.T) {
	b := setup(t)
	g := newGate(b, "gate")
	b.register(`
name: cancelled
namespace_name: test
step_templates:
  - {name: runs, handler: gate}
  - {name: cancelled, handler: tasker.echo, depends_on_step: runs}
  - {name: behind, handler: tasker.echo, depends_on_step: cancelled}
  - {name: beside, handler: tasker.echo, depends_on_step: runs}`)
	b.start()
	task := b.enqueue("cancelled", `{}`)
	<-g.running
	b.exec(`SELECT tasker.settle_step($1, 'cancelled', NULL, 'ada', 'not wanted')`, b.step(task, "cancelled").StepID)
	close(g.release)
	b.finish()
	b.want("error complete cancelled pending complete", `SELECT t.state || ' ' || string_agg(s.state, ' ' ORDER BY position)
		FROM tasker.tasks t JOIN tasker.steps s USING (task_id) GROUP BY t.state`)
	b.want(`1 step cancelled: cancelled`, `SELECT error ->> 'message' FROM tasker.tasks`)
	b.want("blocked_by_failures", `SELECT execution_status FROM tasker.task_summaries`)
	b.must(b.store.ResolveTask(t.Context(), task, ada))
	b.want("resolved_manually", `SELECT state FROM tasker.tasks`)
}

// A task with a failed step and one that is ready has ready steps: it is blocked
// only when nothing can move. (A later system chose the opposite, since there a
// blocked task looked alive; here it ends in error, so that both are seen.)
func TestTrap6AFailureHidesNoWorkThatIsReady(t *testing.T) {
	b := setup(t)
	g := newGate(b, "gate")
	b.register(`
name: both
namespace_name: test
max_parallel_steps: 1
step_templates:
  - {name: fails, handler: tasker.fail, handler_config: {permanent: true}}
  - {name: runs, handler: gate}
  - {name: ready, handler: tasker.echo}
  - {name: blocked, handler: tasker.echo, depends_on_step: fails}`)
	b.start()
	task := b.enqueue("both", `{}`)
	const status = `SELECT execution_status FROM tasker.task_summaries`
	<-g.running
	b.want("processing", status)
	b.must(b.store.PauseTask(t.Context(), task, ada)) // holds the task where a step has failed and another is ready
	close(g.release)
	b.until("what ran has ended", func() bool { return b.step(task, "runs").State == tasker.StepComplete })
	b.want("has_ready_steps", status)
	b.must(b.store.ResumeTask(t.Context(), task, ada))
	b.finish()
	b.want("blocked_by_failures", status)
	b.want("error: error,complete,complete,pending", `SELECT t.state || ': ' || string_agg(s.state, ',' ORDER BY position)
		FROM tasker.tasks t JOIN tasker.steps s USING (task_id) GROUP BY t.state`)
}

// A process that takes a job from Redis the moment that it is there finds its
// attempt in Postgres, every time.
func TestTrap7AJobIsNeverAheadOfItsCommit(t *testing.T) {
	b := setup(t)
	b.register(`
name: race
namespace_name: test
step_templates:
  - {name: a, handler_class: Echo}
  - {name: b, handler_class: Echo, depends_on_step: a}`)
	// Commits of claims take their time: whoever pushes too early is seen.
	b.exec(`CREATE FUNCTION public.dawdle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.002); RETURN NULL; END';
		CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON tasker.dispatches DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW EXECUTE FUNCTION public.dawdle()`)
	b.start()
	const tasks = 50
	redis := b.redis()
	var refused atomic.Int64
	var takers sync.WaitGroup
	b.enqueueMany("race", `{}`, tasks)
	jobs := make(chan struct{}, 2*tasks)
	for range 2 * tasks {
		jobs <- struct{}{}
	}
	close(jobs)
	for range 8 {
		takers.Go(func() {
			for range jobs {
				payload, err := redis.BRPop(t.Context(), patience, "queue:default").Result()
				if err != nil {
					t.Errorf("no job came: %v", err)
					return
				}
				var job struct {
					Args []struct {
						StepID  int64 `json:"step_id"`
						Attempt int   `json:"attempt"`
					}
				}
				if err := json.Unmarshal([]byte(payload[1]), &job); err != nil || len(job.Args) != 1 {
					t.Errorf("job %s: %v", payload[1], err)
					return
				}
				var status string
				err = b.pool.QueryRow(t.Context(), `SELECT standin.start_attempt($1, $2) ->> 'status'`, job.Args[0].StepID, job.Args[0].Attempt).Scan(&status)
				if err != nil {
					t.Error(err)
					return
				}
				if status != "started" {
					refused.Add(1)
				}
				if _, err := b.pool.Exec(t.Context(), `SELECT standin.report_results(jsonb_build_array(jsonb_build_object('step_id', $1::bigint, 'attempt', $2::int, 'outcome', 'success')))`,
					job.Args[0].StepID, job.Args[0].Attempt); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	takers.Wait()
	if n := refused.Load(); n > 0 {
		t.Fatalf("%d of %d jobs were in Redis before their attempt was in Postgres", n, 2*tasks)
	}
	b.finish()
	b.want("1 50", `SELECT concat_ws(' ', (SELECT max(attempts) FROM tasker.steps), count(*)) FROM tasker.tasks WHERE state = 'complete'`)
}

// The same result from many connections at the same time: one is accepted, the
// others are told why not, and the step behind starts once.
func TestTrap8OfManyEqualReportsOneIsAccepted(t *testing.T) {
	b := setup(t)
	var after atomic.Int64
	b.handlers.Register("after", func(context.Context, *tasker.Attempt) (any, error) { return after.Add(1), nil })
	b.register(`
name: reported
namespace_name: test
step_templates:
  - {name: only, handler_class: Echo}
  - {name: after, handler: after, depends_on_step: only}`)
	b.start()
	task := b.enqueue("reported", `{}`)
	step := b.dispatched(task, 1)
	const reporters = 6
	report := func(tx pgx.Tx) (ok bool) {
		if err := tx.QueryRow(t.Context(), `SELECT accepted FROM standin.report_results(jsonb_build_array(jsonb_build_object(
			'step_id', $1::bigint, 'attempt', 1, 'outcome', 'success')))`, step).Scan(&ok); err != nil {
			t.Error(err)
		}
		return ok
	}
	// The first is not committed when the others come: they have read the step
	// as it was before.
	first := b.open(`SELECT 1`)
	var accepted atomic.Int64
	count := func(ok bool) {
		if ok {
			accepted.Add(1)
		}
	}
	count(report(first))
	var all sync.WaitGroup
	for range reporters - 1 {
		tx := b.open(`SELECT 1`)
		all.Go(func() {
			count(report(tx))
			if err := tx.Commit(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	b.until("they wait for the first", func() bool {
		return b.number(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%report_results%'`) == reporters-1
	})
	b.must(first.Commit(t.Context()))
	all.Wait()
	b.finish()
	if accepted.Load() != 1 || after.Load() != 1 {
		t.Errorf("of %d equal reports %d were accepted, and the step behind ran %d times", reporters, accepted.Load(), after.Load())
	}
	b.want("1 5", `SELECT concat_ws(' ', count(*) FILTER (WHERE name = 'step.completed'), count(*) FILTER (WHERE name = 'step.report_refused'))
		FROM tasker.events WHERE step_id = $1`, step)
	b.checkHistory()
}

// Data is read where it is needed, from Postgres. It is neither in Redis, nor
// copied from the task into its steps.
func TestTrap9AJobCarriesNamesAndNoData(t *testing.T) {
	b := setup(t)
	b.handlers.Register("secret", func(context.Context, *tasker.Attempt) (any, error) { return "secret result", nil })
	b.register(`
name: data
namespace_name: test
step_templates:
  - {name: first, handler: secret}
  - {name: only, handler_class: Echo, depends_on_step: first, handler_config: {password: secret config}}`)
	b.start()
	task := b.enqueue("data", `{"card": "secret context"}`)
	step := b.dispatched(task, 1)
	b.until("the job is in Redis", func() bool { return len(b.queued("default")) == 1 })
	payload := b.queued("default")[0]
	var job struct{ Args []map[string]any }
	decoder := json.NewDecoder(strings.NewReader(payload))
	decoder.UseNumber()
	b.must(decoder.Decode(&job))
	args := fmt.Sprint(job.Args)
	if want := fmt.Sprintf("[map[attempt:1 handler:Echo step_id:%d task_id:%d ticket:%d v:1]]", step, task, b.number(`SELECT ticket FROM tasker.dispatches WHERE step_id = $1`, step)); args != want || strings.Contains(payload, "secret") {
		t.Errorf("the job is\n%s\nwant nothing but %s", payload, want)
	}
	b.want("0", `SELECT count(*)::text FROM tasker.steps s WHERE to_jsonb(s) - 'result' @? 'strict $.** ? (@ like_regex "secret")'`)
	// The handler gets all of it.
	given := b.text(`SELECT standin.start_attempt($1, 1)::text`, step)
	for _, want := range []string{"secret context", "secret config", "secret result"} {
		if !strings.Contains(given, want) {
			t.Errorf("the handler is given no %s: %s", want, given)
		}
	}
}

// The database itself keeps steps and edges single, whoever registers a
// template, and so does a template that names a dependency twice.
func TestTrap10StepsAndEdgesExistOnce(t *testing.T) {
	b := setup(t)
	_, err := b.pool.Exec(t.Context(), `SELECT tasker.register_template('test', 'twins', '1.0.0', NULL, '{}', 'x', 1, jsonb_build_array(
		'{"position": 0, "name": "same", "handler": "tasker.echo", "attempt_limit": 1}'::jsonb,
		'{"position": 1, "name": "same", "handler": "tasker.echo", "attempt_limit": 1}'::jsonb))`)
	if err == nil || !strings.Contains(err.Error(), "23505") {
		t.Errorf("two steps of the same name: got %v", err)
	}
	b.want("0", `SELECT count(*)::text FROM tasker.task_templates`)

	b.register(`
name: doubled
namespace_name: test
step_templates:
  - {name: first, handler: tasker.echo}
  - {name: second, handler: tasker.echo, depends_on_step: first, depends_on_steps: [first, first]}`)
	b.start()
	task := b.enqueue("doubled", `{}`)
	b.finish()
	b.want("first", `SELECT string_agg(depends_on_name, ', ') FROM tasker.step_dependencies WHERE task_id = $1`, task)
	b.want("complete,complete", `SELECT string_agg(state, ',') FROM tasker.steps`)
	_, err = b.pool.Exec(t.Context(), `INSERT INTO tasker.steps (task_id, position, name) SELECT task_id, position, name FROM tasker.steps`)
	if err == nil || !strings.Contains(err.Error(), "23505") {
		t.Errorf("a task's steps a second time: got %v", err)
	}
}

// Two workflows with steps of the same names, whose edges together would be a
// cycle.
func TestTrap10CyclesAreAMatterOfOneTemplate(t *testing.T) {
	b := setup(t)
	const template = `
name: %s
namespace_name: test
step_templates:
  - {name: a, handler: tasker.echo%s}
  - {name: b, handler: tasker.echo%s}`
	b.register(fmt.Sprintf(template, "there", "", ", depends_on_step: a"))
	b.register(fmt.Sprintf(template, "back", ", depends_on_step: b", ""))
	b.start()
	b.enqueue("there", `{}`)
	b.enqueue("back", `{}`)
	b.finish()
	b.want("back: b a, there: a b", `SELECT string_agg(path, ', ' ORDER BY path) FROM (
		SELECT t.name || ': ' || string_agg(s.name, ' ' ORDER BY e.event_id) AS path
		FROM tasker.events e JOIN tasker.tasks t USING (task_id) JOIN tasker.steps s USING (step_id)
		WHERE e.name = 'step.completed' GROUP BY t.name) x`)
}

// What the called system asks for is all that is waited. The policies here would
// add a quarter of an hour.
func TestTrap11AnAskedForDelayReplacesTheBackoff(t *testing.T) {
	b := setup(t)
	b.register(`
name: asks
namespace_name: test
retry: {backoff: fixed, base_seconds: 1000, cap_seconds: 1000}
step_templates:
  - {name: go, handler: tasker.fail, handler_config: {times: 2, retry_after: 0.1}}
  - {name: ruby, handler_class: Fail, handler_config: {times: 2, retry_after: 0.1}}
  - {name: text, handler_class: Fail, handler_config: {times: 2, retry_after: "0.1"}}`)
	b.start()
	b.sidekiq()
	b.enqueue("asks", `{}`)
	b.finish()
	b.want("go complete 3, ruby complete 3, text complete 3", `SELECT string_agg(concat_ws(' ', name, state, attempts), ', ' ORDER BY position) FROM tasker.steps`)
	b.want("6 0.1", `SELECT concat_ws(' ', count(*), string_agg(DISTINCT data ->> 'retry_in_seconds', ' ')) FROM tasker.events WHERE name = 'step.retry_requested'`)
}

// An event is part of its transition's transaction: before the commit nobody
// sees it, after a rollback there is none, and then there is one.
func TestTrap12AnEventExistsWhenItsTransitionIsCommitted(t *testing.T) {
	b := setup(t)
	b.register(oneRubyStep)
	b.start()
	task := b.enqueue("ruby", `{}`)
	step := b.dispatched(task, 1)
	const completed = `SELECT count(*)::text FROM tasker.events WHERE name IN ('step.completed', 'task.completed')`
	for _, commit := range []bool{false, true} {
		tx, err := b.pool.Begin(t.Context())
		b.must(err)
		var ok bool
		b.must(tx.QueryRow(t.Context(), `SELECT accepted FROM standin.report_results(jsonb_build_array(
			jsonb_build_object('step_id', $1::bigint, 'attempt', 1, 'outcome', 'success')))`, step).Scan(&ok))
		if !ok {
			t.Error("the report was refused")
		}
		b.want("0", completed)
		if !commit {
			b.must(tx.Rollback(t.Context()))
			b.want("0", completed)
			b.want("enqueued 1", `SELECT concat_ws(' ', state, attempts) FROM tasker.steps`)
			continue
		}
		b.must(tx.Commit(t.Context()))
	}
	b.finish()
	b.want("2", completed)
	b.checkHistory()
}

// A template whose two halves don't agree, which only somebody who writes to the
// tables by hand can make, fails its tasks' loops with a reason; it doesn't leave
// them waiting for what SQL never started.
func TestATemplateThatDisagreesWithItselfIsNamed(t *testing.T) {
	b := setup(t)
	b.register(twoWorkers)
	b.exec(`UPDATE tasker.template_steps SET depends_on = '{}'`)
	id := int64(b.number(`SELECT template_id FROM tasker.task_templates`))
	_, err := b.store.Template(t.Context(), id)
	if err == nil || !strings.Contains(err.Error(), "don't have the same steps and dependencies; register a new version") {
		t.Errorf("reading it: %v", err)
	}
}
