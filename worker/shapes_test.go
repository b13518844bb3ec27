package worker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/taskerhq/tasker"
)

const modulus = 1_000_000_007

// mix is the Go twin of the Ruby handler Mix.
func mix(_ context.Context, a *tasker.Attempt) (any, error) {
	var c struct {
		Salt     int64
		Failures int
	}
	if err := json.Unmarshal(a.Config, &c); err != nil {
		return nil, err
	}
	if a.Used <= c.Failures {
		return nil, errors.New("not yet")
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

// failures scripts how often a step fails before it succeeds.
func failures(i int) int { return i % 3 % 2 } // 0, 1, 0, 0, 1, 0 …

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

// yaml writes the template. language picks the handler of step i.
func (s shape) yaml(name string, language func(i int) string) string {
	var out strings.Builder
	fmt.Fprintf(&out, "name: %s\nnamespace_name: test\nmax_parallel_steps: 100\nretry: {backoff: fixed, base_seconds: 0.02, jitter: 0}\nstep_templates:\n", name)
	for i, deps := range s {
		names := make([]string, len(deps))
		for j, d := range deps {
			names[j] = fmt.Sprintf("s%d", d)
		}
		fmt.Fprintf(&out, "  - {name: s%d, %s, depends_on_steps: [%s], handler_config: {salt: %d, failures: %d}}\n",
			i, language(i), strings.Join(names, ", "), i, failures(i))
	}
	return out.String()
}

// Every shape, with scripted failures, to exact attempts, delays and values:
// all in Go, all in Ruby through a real Sidekiq, and both in turn.
func TestShapesComeToExactValuesAndAttempts(t *testing.T) {
	b := setup(t)
	b.handlers.Register("mix", mix)
	languages := map[string]func(int) string{
		"go":   func(int) string { return "handler: mix" },
		"ruby": func(int) string { return "handler_class: Mix" },
		"both": func(i int) string { return []string{"handler: mix", "handler_class: Mix"}[i%2] },
	}
	tasks := map[int64]shape{}
	b.start()
	b.sidekiq()
	for name, s := range shapes() {
		for language, handler := range languages {
			b.register(s.yaml(name+"_"+language, handler))
			tasks[b.enqueue(name+"_"+language, `{}`)] = s
		}
	}
	b.finish()
	for task, s := range tasks {
		name := b.text(`SELECT name FROM tasker.tasks WHERE task_id = $1`, task)
		steps, err := b.store.StepsOf(t.Context(), task)
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range s.values() {
			step := steps[i]
			result, attempts := fmt.Sprintf(`{"value": %d}`, want), failures(i)+1
			if step.State != tasker.StepComplete || string(step.Result) != result || step.Attempts != attempts || step.Losses != 0 {
				t.Errorf("%s, %s: %s %s after %d attempts (%d lost), want complete %s after %d", name, step.Name, step.State, step.Result, step.Attempts, step.Losses, result, attempts)
				break
			}
		}
	}
	b.checkHistory()
	b.want("0.02", `SELECT string_agg(DISTINCT data ->> 'retry_in_seconds', ' ') FROM tasker.events WHERE name = 'step.retry_requested'`)
	b.want("0", `SELECT count(*)::text FROM tasker.events r JOIN tasker.events n ON n.step_id = r.step_id AND n.attempt = r.attempt + 1
		WHERE r.name = 'step.retry_requested' AND n.name IN ('step.handle', 'step.execution_requested') AND n.created_at < r.created_at + interval '20 milliseconds'`)
	// No step began before all that it depends on was complete.
	b.want("0", `SELECT count(*)::text FROM tasker.step_dependencies d
		JOIN tasker.events e ON e.step_id = d.step_id AND e.attempt = 1 AND e.name IN ('step.handle', 'step.execution_requested')
		JOIN tasker.events c ON c.step_id = d.depends_on_step_id AND c.name = 'step.completed' WHERE e.event_id < c.event_id`)
}
