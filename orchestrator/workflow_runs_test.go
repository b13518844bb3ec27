package orchestrator

import (
	"bytes"
	"encoding/json"
	"flag"
	"log/slog"
	"math"
	"os"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/dag"
	"github.com/taskerhq/tasker/finalizer"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/template"
)

// contract/workflow_runs.json says what becomes of a task whose attempts end as
// a script says. Here the loop itself is asked, over the simulation's database
// and clock; the gem asks its inline runner for the same, so that a test of a
// Rails team and the engine agree. With -update, the file is written anew.

var update = flag.Bool("update", false, "write contract/workflow_runs.json anew")

const workflowRuns = "../contract/workflow_runs.json"

type workflowRun struct {
	About    string                       `json:"about"`
	Template json.RawMessage              `json:"template"`
	Script   map[string][]scriptedOutcome `json:"script"` // per step, by attempt; the last one stays; none: its name as result
	Want     *workflowEnd                 `json:"want"`
}

type scriptedOutcome struct {
	Result  json.RawMessage  `json:"result,omitempty"`
	Failure *scriptedFailure `json:"failure,omitempty"`
}

type scriptedFailure struct {
	Code       string          `json:"code,omitempty"`
	Permanent  bool            `json:"permanent,omitempty"`
	RetryAfter json.RawMessage `json:"retry_after,omitempty"`
}

type workflowEnd struct {
	Task     tasker.TaskState           `json:"task"`
	Error    *workflowError             `json:"error"`
	Elapsed  float64                    `json:"elapsed"` // seconds
	Steps    map[string]workflowStepEnd `json:"steps"`
	Attempts [][3]any                   `json:"attempts"` // step, number, seconds after the task began
}

type workflowError struct {
	Message string   `json:"message"`
	Steps   []string `json:"steps"`
}

type workflowStepEnd struct {
	State    tasker.StepState `json:"state"`
	Attempts int              `json:"attempts"`
	Result   json.RawMessage  `json:"result"`
}

func TestWorkflowsRunAsTheContractSays(t *testing.T) {
	data, err := os.ReadFile(workflowRuns)
	if err != nil {
		t.Fatal(err)
	}
	var runs []workflowRun
	if err := json.Unmarshal(data, &runs); err != nil {
		t.Fatal(err)
	}
	for i, run := range runs {
		t.Run(run.About, func(t *testing.T) {
			tpl, err := template.Parse("workflow_runs.json", run.Template, template.Options{})
			if err != nil {
				t.Fatal(err)
			}
			var end *workflowEnd
			synctest.Test(t, func(t *testing.T) { end = run.play(t, tpl) })
			if *update {
				runs[i].Want = end
				return
			}
			got, want := asJSON(t, end), asJSON(t, run.Want)
			if !reflect.DeepEqual(got, want) {
				t.Errorf("\n got: %s\nwant: %s", marshal(t, end), marshal(t, run.Want))
			}
		})
	}
	if *update {
		var text bytes.Buffer
		text.WriteString("[\n")
		for i, run := range runs {
			text.WriteString("  {\n")
			text.WriteString(`    "about": ` + string(marshal(t, run.About)) + ",\n")
			text.WriteString(`    "template": ` + string(marshal(t, run.Template)) + ",\n")
			text.WriteString(`    "script": ` + string(marshal(t, run.Script)) + ",\n")
			text.WriteString(`    "want": ` + string(marshal(t, run.Want)) + "\n  }")
			if i < len(runs)-1 {
				text.WriteString(",")
			}
			text.WriteString("\n")
		}
		text.WriteString("]\n")
		if err := os.WriteFile(workflowRuns, text.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// play runs the task to its end. All that is out ends at once, in the order of
// the template, as soon as the loop starts nothing more.
func (run *workflowRun) play(t *testing.T, tpl *tasker.Template) *workflowEnd {
	t.Helper()
	w := &world{scenario: &scenario{template: tpl}, state: tasker.TaskPending, job: new(time.Now())}
	var err error
	if w.graph, err = dag.New(tpl.Steps); err != nil {
		t.Fatal(err)
	}
	w.o = &Orchestrator{
		Config:   Config{Logger: slog.New(slog.DiscardHandler)},
		draining: make(chan struct{}), loops: map[int64]*loop{}, awaiting: map[int64]bool{},
	}
	w.o.gates.Store(&store.KnownGates{})
	w.o.Tune(Tuning{ParkAfter: 2 * time.Second})
	w.rows = make([]row, w.graph.Len())
	for i := range w.rows {
		w.rows[i].state = tasker.StepPending
	}
	end := &workflowEnd{Steps: map[string]workflowStepEnd{}, Attempts: [][3]any{}}
	results := make([]json.RawMessage, len(w.rows))
	began := time.Now()
	for rounds := 0; !w.state.Finished() && w.err == nil; rounds++ {
		switch {
		case rounds > 10_000:
			t.Fatal("the task doesn't end")
		case w.loop == nil && w.job == nil:
			t.Fatalf("the task hangs: %v", w.states())
		case w.loop == nil:
			time.Sleep(time.Until(*w.job))
			w.claim()
		default:
			before := w.begun()
			w.turn()
			if w.loop == nil || w.begun() > before || w.loop.mailed() {
				continue
			}
			if w.outstanding() > 0 {
				run.end(t, w, results, end, time.Since(began))
				continue
			}
			if next := w.loop.next(); !next.IsZero() {
				time.Sleep(time.Until(next))
			}
		}
	}
	if w.err != nil {
		t.Fatal(w.err)
	}
	end.Task, end.Elapsed = w.state, seconds(time.Since(began))
	p := dag.NewProgress(w.graph, w.states())
	standing := finalizer.Standing{Unfinished: p.Unfinished()}
	for _, i := range p.FailedSteps() {
		standing.Failed = append(standing.Failed, w.graph.Name(i))
	}
	if d := finalizer.DecideTask(standing, time.Now()); d.Outcome == finalizer.TaskFailed {
		end.Error = &workflowError{d.Message, d.Steps}
	}
	for i, r := range w.rows {
		end.Steps[w.graph.Name(i)] = workflowStepEnd{r.state, r.attempts, results[i]}
	}
	return end
}

// begun counts all attempts so far.
func (w *world) begun() (n int) {
	for i := range w.rows {
		n += w.rows[i].attempts
	}
	return n
}

// end reports, as a Sidekiq process would, for all attempts that are out.
func (run *workflowRun) end(t *testing.T, w *world, results []json.RawMessage, end *workflowEnd, at time.Duration) {
	t.Helper()
	for i := range w.rows {
		r := &w.rows[i]
		if !r.dispatched || r.failure != nil || !r.state.Outstanding() {
			continue
		}
		name := w.graph.Name(i)
		end.Attempts = append(end.Attempts, [3]any{name, r.attempts, seconds(at)})
		outcome := scriptedOutcome{Result: marshal(t, name)}
		if script := run.Script[name]; len(script) > 0 {
			outcome = script[min(r.attempts, len(script))-1]
		}
		if f := outcome.Failure; f != nil {
			r.failure = marshal(t, map[string]any{"class": "Scripted", "message": "as the script says", "code": f.Code, "permanent": f.Permanent, "retry_after": f.RetryAfter})
		} else {
			results[i] = outcome.Result
			r.state, r.dispatched = tasker.StepComplete, false
		}
		if !r.awaited {
			w.job = new(time.Now())
			continue
		}
		w.loop.mail.put(letter{report: &store.Report{TaskID: 1, StepID: int64(i + 1), State: r.state, Attempts: r.attempts, Failure: r.failure}})
	}
}

func seconds(d time.Duration) float64 { return math.Round(d.Seconds()*1e6) / 1e6 }

func marshal(t *testing.T, v any) json.RawMessage {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func asJSON(t *testing.T, v any) (value any) {
	t.Helper()
	if err := json.Unmarshal(marshal(t, v), &value); err != nil {
		t.Fatal(err)
	}
	return value
}
