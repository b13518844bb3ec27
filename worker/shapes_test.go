package worker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/taskerhq/tasker"
)

const modulus = 1_000_000_007

// mixer is the Go twin of the Ruby handler Mix: it folds the values of its
// dependencies into one number. Before that it fails as its script says.
type mixer struct {
	late sync.Map        // step id → what its deaf attempt waits for
	over <-chan struct{} // the test is over
}

func (m *mixer) handle(ctx context.Context, a *tasker.Attempt) (any, error) {
	var c struct {
		Salt int64
		script
	}
	if err := json.Unmarshal(a.Config, &c); err != nil {
		return nil, err
	}
	switch {
	case a.Used == 1 && c.Overruns == listening:
		<-ctx.Done()
		return nil, ctx.Err()
	case a.Used == 1 && c.Overruns == deaf:
		next := make(chan struct{})
		m.late.Store(a.StepID, next)
		select {
		case <-next:
		case <-m.over:
		}
		return map[string]int64{"value": -1}, nil // while the next attempt runs
	case a.Used <= c.Failures:
		return nil, errors.New("not yet")
	}
	if late, ok := m.late.Load(a.StepID); ok {
		close(late.(chan struct{}))
		time.Sleep(20 * time.Millisecond) // the work: the late result has its chance to come first
	}
	var sum int64
	for name, result := range a.Dependencies {
		var v struct{ Value *int64 }
		if err := json.Unmarshal(result, &v); err != nil || v.Value == nil {
			return nil, fmt.Errorf("dependency %s has the result %s", name, result)
		}
		sum += *v.Value
	}
	return map[string]int64{"value": (sum*31 + c.Salt) % modulus}, nil
}

// script is how the first attempts of a step go wrong, before one succeeds.
type script struct {
	Failures int    `json:"failures"`
	Overruns string `json:"overruns"` // the first attempt takes longer than timeout_seconds
}

const (
	listening = "listening" // returns when its context ends
	deaf      = "deaf"      // goes on
)

// scripted is the script of step i. A few steps overrun their time, one behind
// the other where the shape has a chain; it takes seconds until an attempt that
// doesn't listen is given up, so there are no more.
func scripted(i int, ruby bool) script {
	s := script{Failures: i % 3 % 2} // 0, 1, 0, 0, 1, 0 …
	switch {
	case i == 1:
		s = script{Overruns: deaf}
	case i == 2 && !ruby:
		s = script{Overruns: listening}
	}
	return s
}

func (s script) attempts() int {
	if s.Overruns != "" {
		return 2
	}
	return s.Failures + 1
}

// shape is a DAG: for each step the steps that it depends on, all before it.
type shape [][]int

// The shapes that the earlier systems were tested with, and a wide one.
func shapes() map[string]shape {
	fan := shape{nil}
	var all []int
	for i := 1; i <= 1000; i++ {
		fan = append(fan, []int{0})
		all = append(all, i)
	}
	return map[string]shape{
		"linear":         {nil, {0}, {1}, {2}, {3}, {4}},
		"diamond":        {nil, {0}, {0}, {1, 2}, {3}},
		"tree":           {nil, {0}, {0}, {1}, {1}, {2}, {2}, {3}},
		"parallel_merge": {nil, nil, nil, {0}, {1}, {2}, {3, 4, 5}},
		"mixed":          {nil, {0}, {0}, {1}, {1, 2}, {2}, {3, 4}, {5, 6}, {0, 7}},
		"fan":            append(fan, all),
	}
}

// values is what the shape comes to, computed independently of any engine.
func (s shape) values() []int64 {
	out := make([]int64, len(s))
	for i, deps := range s {
		for _, d := range deps {
			out[i] += out[d]
		}
		out[i] = (out[i]*31 + int64(i)) % modulus
	}
	return out
}

// language says which steps of a task are written in Ruby.
type language func(i int) (ruby bool)

var languages = map[string]language{
	"go":   func(int) bool { return false },
	"ruby": func(int) bool { return true },
	"both": func(i int) bool { return i%2 == 1 },
}

func (s shape) yaml(name string, ruby language) string {
	var out strings.Builder
	fmt.Fprintf(&out, "name: %s\nnamespace_name: test\nmax_parallel_steps: 100\nretry: {backoff: fixed, base_seconds: 0.02, jitter: 0}\nstep_templates:\n", name)
	for i, deps := range s {
		names := make([]string, len(deps))
		for j, d := range deps {
			names[j] = fmt.Sprintf("s%d", d)
		}
		handler, script, timeout := "handler: mix", scripted(i, ruby(i)), ""
		if ruby(i) {
			handler = "handler_class: Mix"
		}
		if script.Overruns != "" {
			timeout = "timeout_seconds: 3, " // long enough for a second attempt on a machine that is busy
		}
		fmt.Fprintf(&out, "  - {name: s%d, %s, %sdepends_on_steps: [%s], handler_config: {salt: %d, failures: %d, overruns: %q}}\n",
			i, handler, timeout, strings.Join(names, ", "), i, script.Failures, script.Overruns)
	}
	return out.String()
}

// Every shape, with scripted failures and timeouts, to exact attempts, delays
// and values: all in Go, all in Ruby through a real Sidekiq, and both in turn.
func TestShapesComeToExactValuesAndAttempts(t *testing.T) {
	b := setup(t)
	m := &mixer{over: t.Context().Done()}
	b.handlers.Register("mix", m.handle)
	type run struct {
		shape
		ruby language
	}
	tasks := map[int64]run{}
	b.start()
	b.sidekiq("-c", "20") // overrunning handlers keep their threads
	for name, s := range shapes() {
		for word, ruby := range languages {
			b.register(s.yaml(name+"_"+word, ruby))
			tasks[b.enqueue(name+"_"+word, `{}`)] = run{s, ruby}
		}
	}
	b.finish()
	b.exec(`ANALYZE`) // the questions below join a lot
	late, overruns := 0, []string{}
	for task, run := range tasks {
		name := b.text(`SELECT name FROM tasker.tasks WHERE task_id = $1`, task)
		steps, err := b.store.StepsOf(t.Context(), task)
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range run.values() {
			step, script := steps[i], scripted(i, run.ruby(i))
			result := fmt.Sprintf(`{"value": %d}`, want)
			// A process gives back what has waited for a second behind others in its job, once at
			// most: on a machine that is busy enough, that happens.
			if step.State != tasker.StepComplete || string(step.Result) != result || step.Attempts != script.attempts()+step.Losses || step.Losses > 1 {
				t.Errorf("%s, %s: %s %s after %d attempts (%d lost), want complete %s after %d", name, step.Name, step.State, step.Result, step.Attempts, step.Losses, result, script.attempts())
				break
			}
			if script.Overruns != "" {
				if run.ruby(i) {
					late++
				}
				overruns = append(overruns, fmt.Sprintf("%s %s 1", name, step.Name))
			}
		}
	}
	slices.Sort(overruns)
	b.want(strings.Join(overruns, ", "), `SELECT string_agg(concat_ws(' ', t.name, s.name, e.attempt), ', ' ORDER BY concat_ws(' ', t.name, s.name, e.attempt) COLLATE "C")
		FROM tasker.events e JOIN tasker.tasks t USING (task_id) JOIN tasker.steps s USING (step_id)
		WHERE e.name = 'step.retry_requested' AND e.data ->> 'code' = 'attempt_timeout'`)
	b.until("Sidekiq has reported what came too late", func() bool {
		return b.number(`SELECT count(*) FROM tasker.events WHERE name = 'step.report_refused'`) == late
	})
	b.want("0", `SELECT count(*)::text FROM tasker.steps WHERE result @> '{"value": -1}'`)
	b.checkHistory()
	b.want("0.02", `SELECT string_agg(DISTINCT data ->> 'retry_in_seconds', ' ') FROM tasker.events WHERE name = 'step.retry_requested' AND data ->> 'code' IS DISTINCT FROM 'attempt_lost'`)
	b.want("0", `SELECT count(*)::text FROM tasker.events r JOIN tasker.events n ON n.step_id = r.step_id AND n.attempt = r.attempt + 1
		WHERE r.name = 'step.retry_requested' AND r.data ->> 'code' IS DISTINCT FROM 'attempt_lost' AND n.name IN ('step.handle', 'step.execution_requested') AND n.created_at < r.created_at + interval '20 milliseconds'`)
	// No step began before all that it depends on was complete.
	b.want("0", `SELECT count(*)::text FROM tasker.step_dependencies d
		JOIN tasker.events e ON e.step_id = d.step_id AND e.attempt = 1 AND e.name IN ('step.handle', 'step.execution_requested')
		JOIN tasker.events c ON c.step_id = d.depends_on_step_id AND c.name = 'step.completed' WHERE e.event_id < c.event_id`)
}
