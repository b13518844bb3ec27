package worker_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

const orderWithSchema = `
name: fulfil_order
namespace_name: test
version: 1.0.0
schema:
  type: object
  required: [order_id]
  additionalProperties: false
  properties:
    order_id: {type: integer, minimum: 1}
    items: {type: array, items: {type: object, properties: {price: {type: number}}}}
step_templates: [{name: only, handler: tasker.echo}]`

// Guarantee 8: a context that doesn't fit is refused in the INSERT, in words,
// and nothing of it stays behind.
func TestAContextThatDoesNotFitItsSchemaIsRefusedInTheInsert(t *testing.T) {
	b := setup(t)
	b.register(orderWithSchema)
	b.register(oneGoStep)
	for _, c := range []struct{ context, want string }{
		{`{}`, `$.order_id is missing`},
		{`{"order_id": "7"}`, `$.order_id must be a whole number, not "7"`},
		{`{"order_id": 0}`, `$.order_id must be at least 1, not 0`},
		{`{"order_id": 7, "oder": 1}`, `$.oder is not allowed; there may be: items, order_id`},
		{`{"order_id": 7, "items": [{}, {"price": 1}, {"price": "x"}]}`, `$.items[2].price must be a number, not "x"`},
	} {
		for _, insert := range []string{
			`INSERT INTO tasker.tasks (namespace, name, context) VALUES ('test', 'fulfil_order', $1)`,
			`INSERT INTO tasker.tasks (namespace, name, context) VALUES ('test', 'one', '{}'), ('test', 'fulfil_order', '{"order_id": 1}'), ('test', 'fulfil_order', $1)`,
			`SELECT tasker.enqueue_task('test', 'fulfil_order', $1)`,
		} {
			_, err := b.pool.Exec(t.Context(), insert, c.context)
			var refused *pgconn.PgError
			want := "the context does not fit the schema of test/fulfil_order@1.0.0: " + c.want
			if !errors.As(err, &refused) || refused.Code != "TK003" || refused.Message != want || !strings.Contains(refused.Hint, "tasker template show test/fulfil_order@1.0.0") {
				t.Errorf("%s of %s\n got: %v\nwant: %s", insert, c.context, err, want)
			}
		}
	}
	for _, table := range []string{"tasks", "steps", "events", "river_job"} {
		if n := b.number(`SELECT count(*) FROM tasker.` + table); n != 0 {
			t.Errorf("refused inserts left %d rows in %s", n, table)
		}
	}

	b.exec(`INSERT INTO tasker.tasks (namespace, name, context, run_at) VALUES ('test', 'fulfil_order', '{"order_id": 1}', now() + interval '1 day')`)
	_, err := b.pool.Exec(t.Context(), `UPDATE tasker.tasks SET context = '{"order_id": "x"}'`)
	if err == nil || !strings.Contains(err.Error(), `the context does not fit the schema of test/fulfil_order@1.0.0: $.order_id must be a whole number, not "x"`) {
		t.Errorf("a context that is replaced: got %v", err)
	}
	b.exec(`UPDATE tasker.tasks SET context = '{"order_id": 2}', run_at = NULL`)
	b.exec(`DELETE FROM tasker.tasks`)

	b.start()
	task := b.enqueue("fulfil_order", `{"order_id": 7.0, "items": [{"price": 1.5}]}`)
	b.finish()
	b.want("complete", `SELECT state FROM tasker.tasks WHERE task_id = $1`, task)
}

// A task is held against the schema of the version that it gets.
func TestEachVersionHasItsSchema(t *testing.T) {
	b := setup(t)
	b.register(orderWithSchema)
	b.register(strings.NewReplacer("1.0.0", "2.0.0", "order_id", "id").Replace(orderWithSchema))
	b.exec(`INSERT INTO tasker.tasks (namespace, name, version, context) VALUES ('test', 'fulfil_order', '1.0.0', '{"order_id": 1}')`)
	b.exec(`INSERT INTO tasker.tasks (namespace, name, context) VALUES ('test', 'fulfil_order', '{"id": 1}')`)
	_, err := b.pool.Exec(t.Context(), `INSERT INTO tasker.tasks (namespace, name, context) VALUES ('test', 'fulfil_order', '{"order_id": 1}')`)
	if err == nil || !strings.Contains(err.Error(), "the context does not fit the schema of test/fulfil_order@2.0.0: $.id is missing") {
		t.Errorf("the latest version's schema: got %v", err)
	}
}

func TestAResultThatDoesNotFitItsSchemaFailsTheStep(t *testing.T) {
	b := setup(t)
	const schema = `result_schema: {type: object, required: [value], properties: {value: {type: integer}}}`
	b.register(`
name: results
namespace_name: test
step_templates:
  - {name: fits, handler: tasker.echo, handler_config: {value: 1}, ` + schema + `}
  - {name: misses, handler: tasker.echo, handler_config: {value: x}, ` + schema + `}
  - {name: only, handler_class: Echo, ` + schema + `}`)
	b.start()
	task := b.enqueue("results", `{}`)
	step := b.dispatched(task, 1)
	if ok, reason := b.report(`{"step_id": %d, "attempt": 1, "outcome": "success", "result": {"other": 1}}`, step); !ok {
		t.Fatal(reason)
	}
	b.finish()
	b.want("fits complete 1, misses error 1, only error 1", `SELECT string_agg(concat_ws(' ', name, state, attempts), ', ' ORDER BY position) FROM tasker.steps WHERE task_id = $1`, task)
	for name, want := range map[string]string{"misses": "$.value", "only": "$.value"} {
		if f := b.failure(task, name); f.Code != "result_schema" || !strings.Contains(f.Message, "does not fit the result_schema of its step: "+want) {
			t.Errorf("%s: %+v", name, f)
		}
	}
}
