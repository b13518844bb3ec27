package worker_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/store"
)

func TestAContextGetsTheDefaultsOfItsSchema(t *testing.T) {
	b := setup(t)
	b.register(`
name: defaults
namespace_name: test
schema:
  type: object
  required: [currency, order]
  properties:
    currency: {type: string, default: EUR}
    order: {type: object, properties: {lines: {type: array, default: []}, gift: {type: boolean, default: false}}}
    note: {type: string}
step_templates: [{name: only, handler: tasker.echo}]`)
	b.register(`
name: misfit
namespace_name: test
schema: {properties: {currency: {type: string, default: 7}}}
step_templates: [{name: only, handler: tasker.echo}]`)
	task := b.enqueue("defaults", `{"order": {"gift": true}}`)
	b.want(`{"order": {"gift": true, "lines": []}, "currency": "EUR"}`, `SELECT context::text FROM tasker.tasks WHERE task_id = $1`, task)
	task = b.enqueue("defaults", `{"order": {"lines": [1], "gift": true}, "currency": "CHF"}`)
	b.want(`{"order": {"gift": true, "lines": [1]}, "currency": "CHF"}`, `SELECT context::text FROM tasker.tasks WHERE task_id = $1`, task)
	for name, context := range map[string]string{
		"defaults": `{"currency": "CHF"}`, // order has no default
		"misfit":   `{}`,                  // its default does not fit
	} {
		_, err := b.store.Enqueue(t.Context(), &store.NewTask{Namespace: "test", Name: name, Context: json.RawMessage(context)})
		var refused *store.RefusedError
		if !errors.As(err, &refused) {
			t.Errorf("%s %s: %v", name, context, err)
		}
	}
}

// A step that is retried with another context has it, be its task owned or not.
func TestAStepIsRetriedWithAnotherContext(t *testing.T) {
	b := setup(t)
	b.handlers.Register("picky", func(_ context.Context, a *tasker.Attempt) (any, error) {
		var c struct{ Good bool }
		if err := json.Unmarshal(a.Context, &c); err != nil || !c.Good {
			return nil, errors.New("not with this context")
		}
		return a.Context, nil
	})
	g := newGate(b, "gate")
	b.register(`
name: inputs
namespace_name: test
schema: {properties: {good: {type: boolean}, from: {default: schema}}}
step_templates:
  - {name: waits, handler: picky, retry: {base_seconds: 200}}
  - {name: holds, handler: gate}`)
	b.start()
	task := b.enqueue("inputs", `{}`)
	<-g.running // so the task stays owned
	b.until("the step waits for its retry", func() bool { return b.step(task, "waits").State == tasker.StepWaitingForRetry })
	step := b.step(task, "waits").StepID
	var refused *store.RefusedError
	if err := b.store.RetryStep(t.Context(), step, json.RawMessage(`{"good": "yes"}`), ada); !errors.As(err, &refused) {
		t.Errorf("a context that does not fit its schema: %v", err)
	}
	b.must(b.store.RetryStep(t.Context(), step, json.RawMessage(`{"good": true}`), ada))
	b.until("the step is complete", func() bool { return b.step(task, "waits").State == tasker.StepComplete })
	close(g.release)
	b.finish()
	b.want(`{"from": "schema", "good": true}`, `SELECT result::text FROM tasker.steps WHERE step_id = $1`, step)
}
