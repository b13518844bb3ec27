package worker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/handler"
	"github.com/taskerhq/tasker/worker"
)

// square returns the product of the dependencies' values, squared; a step
// without dependencies squares the context's "n". The final value of a DAG of
// these proves its order and its data flow.
func square(_ context.Context, a *tasker.Attempt) (any, error) {
	var in struct {
		N int64 `json:"n"`
	}
	if err := json.Unmarshal(a.Context, &in); err != nil {
		return nil, err
	}
	product := in.N
	if len(a.Dependencies) > 0 {
		product = 1
	}
	for name, result := range a.Dependencies {
		var v struct {
			Value int64 `json:"value"`
		}
		if err := json.Unmarshal(result, &v); err != nil || v.Value == 0 {
			return nil, fmt.Errorf("dependency %s has the result %s", name, result)
		}
		product *= v.Value
	}
	return map[string]int64{"value": product * product}, nil
}

func TestADiamondCarriesBothResultsIntoTheJoin(t *testing.T) {
	b := setup(t)
	b.handlers.Register("square", square)
	b.register(`
name: diamond
namespace_name: test
step_templates:
  - {name: start, handler: square}
  - {name: left, handler: square, depends_on_step: start}
  - {name: right, handler: square, depends_on_step: start}
  - {name: join, handler: square, depends_on_steps: [left, right]}`)
	b.start()
	task := b.enqueue("diamond", `{"n": 2}`)
	b.finish()
	// 2² = 4; 4² = 16 on both sides; (16·16)² = 65536.
	b.want(`{"value": 65536}`, `SELECT result::text FROM tasker.steps WHERE task_id = $1 AND name = 'join'`, task)
}

// Guarantee 4, seen from inside: at the time that a handler runs, all its
// dependencies are complete in the database.
func TestAStepNeverStartsBeforeItsDependencies(t *testing.T) {
	b := setup(t)
	var early atomic.Int64
	b.handlers.Register("check", func(ctx context.Context, a *tasker.Attempt) (any, error) {
		var n int
		err := b.pool.QueryRow(ctx, `SELECT count(*) FROM tasker.step_dependencies d JOIN tasker.steps p ON p.step_id = d.depends_on_step_id
			WHERE d.step_id = $1 AND p.state <> 'complete'`, a.StepID).Scan(&n)
		early.Add(int64(n))
		return nil, err
	})
	var yaml strings.Builder
	yaml.WriteString("name: layers\nnamespace_name: test\nstep_templates:\n")
	for layer := range 5 {
		for i := range 4 {
			deps := ""
			if layer > 0 {
				deps = fmt.Sprintf(", depends_on_steps: [l%d_%d, l%d_%d]", layer-1, i, layer-1, (i+1)%4)
			}
			fmt.Fprintf(&yaml, "  - {name: l%d_%d, handler: check%s}\n", layer, i, deps)
		}
	}
	b.register(yaml.String())
	b.start()
	b.enqueueMany("layers", `{}`, 10)
	b.finish()
	if early.Load() > 0 {
		t.Errorf("%d dependencies were not complete when a step that needs them ran", early.Load())
	}
	b.want("200", `SELECT count(*)::text FROM tasker.steps WHERE state = 'complete'`)
}

func TestMaxParallelStepsIsKept(t *testing.T) {
	b := setup(t)
	var now, most atomic.Int64
	b.handlers.Register("count", func(ctx context.Context, a *tasker.Attempt) (any, error) {
		n := now.Add(1)
		defer now.Add(-1)
		for {
			seen := most.Load()
			if n <= seen || most.CompareAndSwap(seen, n) {
				break
			}
		}
		time.Sleep(5 * time.Millisecond) // the work: long enough to overlap
		return nil, nil
	})
	var yaml strings.Builder
	yaml.WriteString("name: wide\nnamespace_name: test\nmax_parallel_steps: 3\nstep_templates:\n")
	for i := range 20 {
		fmt.Fprintf(&yaml, "  - {name: s%d, handler: count}\n", i)
	}
	b.register(yaml.String())
	b.start()
	b.enqueue("wide", `{}`)
	b.finish()
	if most.Load() != 3 {
		t.Errorf("with max_parallel_steps 3 and 20 ready steps, %d ran at once", most.Load())
	}
}

func TestRetriesFollowThePolicyAndEndAtTheLimit(t *testing.T) {
	b := setup(t)
	b.register(`
name: retries
namespace_name: test
step_templates:
  - {name: recovers, handler: tasker.fail, handler_config: {times: 2}, retry: {backoff: fixed, base_seconds: 0.05, jitter: 0}}
  - {name: gives_up, handler: tasker.fail, default_retry_limit: 2, retry: {backoff: fixed, base_seconds: 0.05, jitter: 0}}
  - {name: once, handler: tasker.fail, default_retryable: false}
  - {name: permanent, handler: tasker.fail, handler_config: {permanent: true}}
  - {name: behind, handler: tasker.echo, depends_on_step: gives_up}
  - {name: beside, handler: tasker.echo, depends_on_step: recovers}`)
	b.start()
	task := b.enqueue("retries", `{}`)
	b.finish()
	b.want("error", `SELECT state FROM tasker.tasks WHERE task_id = $1`, task)
	b.want("recovers complete 3, gives_up error 2, once error 1, permanent error 1, behind pending 0, beside complete 1",
		`SELECT string_agg(concat_ws(' ', name, state, attempts), ', ' ORDER BY position) FROM tasker.steps WHERE task_id = $1`, task)
	b.want(`["gives_up", "once", "permanent"]`, `SELECT (error -> 'steps')::text FROM tasker.tasks WHERE task_id = $1`, task)
	b.want("blocked_by_failures", `SELECT execution_status FROM tasker.task_summaries WHERE task_id = $1`, task)
	b.want("0.05 0.05", `SELECT string_agg(data ->> 'retry_in_seconds', ' ' ORDER BY event_id) FROM tasker.events e
		WHERE name = 'step.retry_requested' AND step_id = $1`, b.step(task, "recovers").StepID)
	if early := b.number(`SELECT count(*) FROM tasker.events retry JOIN tasker.events next
			ON next.step_id = retry.step_id AND next.attempt = retry.attempt + 1 AND next.name = 'step.handle'
		WHERE retry.name = 'step.retry_requested' AND next.created_at < retry.created_at + interval '50 milliseconds'`); early > 0 {
		t.Errorf("%d attempts began before their delay was over", early)
	}
}

// A delay that is too long to keep the task in memory is a scheduled River job.
func TestALongDelayIsAScheduledRiverJob(t *testing.T) {
	b := setup(t)
	b.register(`
name: later
namespace_name: test
step_templates:
  - {name: asks, handler: tasker.fail, handler_config: {times: 1, retry_after: 3600}, retry: {retry_after_cap_seconds: 7200}}`)
	b.start()
	task := b.enqueue("later", `{}`)
	b.until("the task is given up", func() bool {
		return b.number(`SELECT count(*) FROM tasker.tasks WHERE task_id = $1 AND owner IS NULL AND state = 'in_progress'`, task) == 1
	})
	b.want("scheduled t", `SELECT concat_ws(' ', state, scheduled_at BETWEEN now() + interval '3500 s' AND now() + interval '3601 s')
		FROM tasker.river_job WHERE state <> 'completed' AND (args ->> 'task_id')::bigint = $1 AND id = (SELECT max(id) FROM tasker.river_job)`, task)
	b.want("waiting_for_retry", `SELECT execution_status FROM tasker.task_summaries WHERE task_id = $1`, task)
	b.want("1", `SELECT count(*)::text FROM tasker.events WHERE task_id = $1 AND name = 'workflow.task_reenqueue_delayed'`, task)

	// The hour passes: in the database, whose clock is the one that counts.
	b.exec(`UPDATE tasker.steps SET retry_at = now() WHERE task_id = $1`, task)
	b.exec(`UPDATE tasker.river_job SET state = 'available', scheduled_at = now() WHERE state = 'scheduled'`)
	b.finish()
	b.want("complete 2", `SELECT concat_ws(' ', state, attempts) FROM tasker.steps WHERE task_id = $1`, task)
}

func TestResultsThatCannotBeStoredFailTheStepAndSayWhy(t *testing.T) {
	b := setup(t)
	results := map[string]any{
		"channel":  make(chan int),
		"nul":      "a\x00b",
		"number":   json.RawMessage(`1e400000`),
		"large":    strings.Repeat("x", tasker.MaxResultBytes),
		"mebibyte": strings.Repeat("x", 1<<20),
		"utf8":     "a\xffb", // encoding/json replaces what is invalid
	}
	b.handlers.Register("return", func(_ context.Context, a *tasker.Attempt) (any, error) { return results[a.Step], nil })
	b.handlers.Register("panic", func(context.Context, *tasker.Attempt) (any, error) { panic("oh\x00no") })
	b.handlers.Register("message", func(context.Context, *tasker.Attempt) (any, error) {
		return nil, handler.Permanent("", errors.New("bad \x00 and \xff"))
	})
	b.register(`
name: results
namespace_name: test
step_templates:
  - {name: channel, handler: return}
  - {name: nul, handler: return}
  - {name: number, handler: return}
  - {name: large, handler: return}
  - {name: mebibyte, handler: return}
  - {name: utf8, handler: return}
  - {name: panics, handler: panic, default_retry_limit: 1}
  - {name: message, handler: message}
`)
	b.start()
	task := b.enqueue("results", `{}`)
	b.finish()
	for step, want := range map[string]struct{ code, message string }{
		"channel": {"result_not_serializable", "the result of handler return is not JSON"},
		"nul":     {"result_not_serializable", `holds a NUL character (\u0000)`},
		"number":  {"result_not_serializable", "has a number of more than 400 digits"},
		"large":   {"result_too_large", "at most 4194304 are kept"},
		"panics":  {"handler_panicked", "ohno"},
		"message": {"", "bad  and \uFFFD"},
	} {
		f := b.failure(task, step)
		if f.Code != want.code || !strings.Contains(f.Message, want.message) {
			t.Errorf("%s: got %q %q, want %q and … %s …", step, f.Code, f.Message, want.code, want.message)
		}
		b.want("error 1", `SELECT concat_ws(' ', state, attempts) FROM tasker.steps WHERE task_id = $1 AND name = $2`, task, step)
	}
	b.want("mebibyte 1048576, utf8 3", `SELECT string_agg(name || ' ' || length(result #>> '{}'), ', ' ORDER BY name) FROM tasker.steps WHERE task_id = $1 AND state = 'complete'`, task)
}

func TestATimeoutEndsTheAttempt(t *testing.T) {
	b := setup(t)
	b.register(`
name: slow
namespace_name: test
step_templates:
  - {name: sleeps, handler: tasker.sleep, handler_config: {seconds: 3600}, timeout_seconds: 0.05, default_retry_limit: 2, retry: {base_seconds: 0.01}}`)
	b.start()
	task := b.enqueue("slow", `{}`)
	b.finish()
	f := b.failure(task, "sleeps")
	if f.Code != tasker.CodeAttemptTimeout || !strings.Contains(f.Message, "no result after 50ms") || f.Attempt != 2 {
		t.Errorf("got %+v", f)
	}
}

// A worker leaves what it has no handler for to one that has, also when that
// one comes only later. Everything else goes on meanwhile.
func TestAStepWaitsForAWorkerThatHasItsHandler(t *testing.T) {
	b := setup(t)
	b.register(`
name: foreign
namespace_name: test
step_templates:
  - {name: own, handler: square}
  - {name: common, handler: tasker.echo}
  - {name: later, handler: tasker.echo, depends_on_step: common}
  - {name: both, handler: square, depends_on_step: own}`)
	b.start() // has no square
	task := b.enqueue("foreign", `{"n": 3}`)
	b.until("all that it can do is done, and the task is given up", func() bool {
		return b.text(`SELECT string_agg(s.state, ',' ORDER BY position) || ' ' || (owner IS NULL)::text
			FROM tasker.steps s JOIN tasker.tasks t USING (task_id) WHERE task_id = $1 GROUP BY owner`, task) == "pending,complete,complete,pending true"
	})
	with := handler.NewRegistry()
	with.Register("square", square)
	b.start(func(c *worker.Config) { c.Handlers = with })
	b.enqueueMany("foreign", `{"n": 3}`, 20) // for both at once
	b.finish()
	b.want(`{"value": 81}`, `SELECT result::text FROM tasker.steps WHERE task_id = $1 AND name = 'both'`, task)
	b.want("21", `SELECT count(*)::text FROM tasker.tasks WHERE state = 'complete'`)
	b.want("1", `SELECT max(attempts)::text FROM tasker.steps`)
}

// SIGTERM: what runs may finish, the rest is handed back and goes on at once
// elsewhere.
func TestAStoppingWorkerHandsItsTasksBack(t *testing.T) {
	b := setup(t)
	release, running := make(chan struct{}), make(chan struct{})
	var once sync.Once
	b.handlers.Register("wait", func(context.Context, *tasker.Attempt) (any, error) {
		once.Do(func() { close(running) })
		<-release
		return "waited", nil
	})
	b.register(`
name: handover
namespace_name: test
step_templates:
  - {name: first, handler: wait}
  - {name: second, handler: tasker.echo, depends_on_step: first}
  - {name: retries, handler: tasker.fail, handler_config: {times: 1, retry_after: 1}}`)
	stop := b.start()
	task := b.enqueue("handover", `{}`)
	<-running
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	b.until("the worker has said that it stops and taken nothing new", func() bool {
		return b.number(`SELECT count(*) FROM tasker.steps WHERE task_id = $1 AND name = 'retries' AND state = 'waiting_for_retry'`, task) == 1
	})
	close(release)
	<-stopped
	b.want("first complete 1 0, second pending 0 0, retries waiting_for_retry 1 0",
		`SELECT string_agg(concat_ws(' ', name, state, attempts, losses), ', ' ORDER BY position) FROM tasker.steps WHERE task_id = $1`, task)
	b.want("in_progress t stopped", `SELECT concat_ws(' ', t.state, owner IS NULL, w.state) FROM tasker.tasks t, tasker.workers w`)

	b.start()
	b.finish()
	b.want("complete", `SELECT state FROM tasker.tasks WHERE task_id = $1`, task)
	b.want("1 1 2", `SELECT string_agg(attempts::text, ' ' ORDER BY position) FROM tasker.steps WHERE task_id = $1`, task)
}

// A handler that outlives the grace is told to stop; its attempt is lost, and
// that costs the step nothing.
func TestAHandlerThatIsInterruptedByTheStopCostsNoAttempt(t *testing.T) {
	b := setup(t)
	var calls atomic.Int64
	running := make(chan struct{})
	b.handlers.Register("hang", func(ctx context.Context, a *tasker.Attempt) (any, error) {
		if calls.Add(1) > 1 {
			return a.Used, nil
		}
		close(running)
		<-ctx.Done()
		return nil, ctx.Err()
	})
	b.register(`
name: hangs
namespace_name: test
step_templates: [{name: only, handler: hang, default_retryable: false}]`)
	stop := b.start(func(c *worker.Config) { c.Shutdown = 50 * time.Millisecond })
	task := b.enqueue("hangs", `{}`)
	<-running
	stop()
	b.start()
	b.finish()
	b.want("complete 2 1 1", `SELECT concat_ws(' ', state, attempts, losses, result) FROM tasker.steps WHERE task_id = $1`, task)
}

// A second signal to stop ends the waiting for handlers, not the order in which a worker
// leaves: what it held runs elsewhere at once.
func TestAWorkerThatIsToldToHurryWaitsNoLonger(t *testing.T) {
	b := setup(t)
	var calls atomic.Int32
	running, end := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(end) })
	b.handlers.Register("deaf", func(context.Context, *tasker.Attempt) (any, error) {
		if calls.Add(1) == 1 {
			close(running)
			<-end // whatever its context says
		}
		return nil, nil
	})
	b.register(`{name: deaf, namespace_name: test, step_templates: [{name: only, handler: deaf}]}`)
	hurry, log := make(chan struct{}), &syncBuffer{}
	stop := b.start(func(c *worker.Config) {
		c.Shutdown, c.ShutdownGrace, c.Hurry, c.Logger = time.Hour, 50*time.Millisecond, hurry, slog.New(slog.NewTextHandler(log, nil))
	})
	b.enqueue("deaf", `{}`)
	<-running
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	b.until("the log says what is waited for", func() bool {
		return strings.Contains(log.String(), "worker waits for running handlers") && strings.Contains(log.String(), "map[deaf:1]")
	})
	select {
	case <-stopped:
		t.Fatal("the worker did not wait")
	default:
	}
	close(hurry)
	<-stopped
	b.want("stopped", `SELECT state FROM tasker.workers`)
	b.start()
	b.finish()
	b.want("complete 2 1", `SELECT concat_ws(' ', state, attempts, losses) FROM tasker.steps`)
}
