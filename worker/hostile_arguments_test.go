package worker_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/taskerhq/tasker/migrations"
)

// hostile are malicious arguments of each type, as SQL. The first
// one is what a caller might give.
var hostile = map[string][]string{
	"bigint":           {`1`, `NULL`, `0`, `-1`, `9223372036854775807`, `-9223372036854775808`},
	"integer":          {`1`, `NULL`, `0`, `-1`, `2147483647`, `-2147483648`},
	"smallint":         {`1`, `NULL`, `0`, `-1`, `32767`, `-32768`},
	"double precision": {`1`, `NULL`, `0`, `-1`, `'NaN'`, `'Infinity'`, `'-Infinity'`, `1e308`},
	"boolean":          {`false`, `NULL`, `true`},
	"text": {`'test'`, `NULL`, `''`, `'%'`, `'\'`, `'test/one'`, `'webhook:shop'`, `repeat('x', 100000)`, `E'\x1b[2J\u202e'`, `'a''b"c'`,
		`E'\u0001'`, `'tasker.worker_1'`},
	"jsonb": {`'{}'`, `NULL`, `'null'`, `'[]'`, `'1e131071'`, `'{"a": [1e131071, 1e-16000, -0.0]}'`, `('"' || repeat('x', 5000000) || '"')::jsonb`,
		`(repeat('[', 5000) || repeat(']', 5000))::jsonb`, `(repeat('{"a":', 300) || '1' || repeat('}', 300))::jsonb`,
		`'[{"step_id": 1, "attempt": 1, "outcome": "success"}]'`, `'[{"step_id": 1e30, "attempt": -1, "outcome": {}}]'`, `'{"queues": 7, "handlers": {}}'`},
	"json":                     {`'{}'`, `NULL`},
	"bytea":                    {`'\x00'`, `NULL`, `''`},
	"text[]":                   {`'{test}'`, `NULL`, `'{}'`, `'{NULL}'`, `'{""}'`, `'{{a,b},{c,d}}'`, `array_fill('x'::text, '{20000}')`, `'{"a\\"}'`, `'[5:6]={a,b}'`},
	"bigint[]":                 {`'{1}'`, `NULL`, `'{}'`, `'{NULL}'`, `'{{1,2},{3,4}}'`, `array_fill(1::bigint, '{20000}')`, `'{9223372036854775807,-1}'`, `'[5:6]={1,2}'`},
	"integer[]":                {`'{1}'`, `NULL`, `'{}'`, `'{NULL}'`, `'{{1,2},{3,4}}'`, `array_fill(1, '{20000}')`, `'{2147483647,-1}'`},
	"double precision[]":       {`'{1}'`, `NULL`, `'{NaN,Infinity}'`},
	"interval":                 {`'1 hour'`, `NULL`, `'0'`, `'-1 day'`, `'178000000 years'`, `'-178000000 years'`},
	"timestamp with time zone": {`now() - interval '1 day'`, `NULL`, `'infinity'`, `'-infinity'`, `'294276-12-31'`, `'4714-11-24 BC'`},
	"tasker.event_cursor": {`ROW (0, '{}', '{}', '{}')`, `NULL`, `ROW (NULL, NULL, NULL, NULL)`, `ROW (-1, '{(,)}', '{NULL}', '{(,)}')`,
		`ROW (9223372036854775807, '{[1,9223372036854775807)}', array_fill('x'::text, '{5000}'), '{}')`},
}

// refusals are the codes of a refused call: ours, bad values, violated constraints, too
// large or too deep, no right, no such thing, in use, another isolation level.
var refusals = []string{"TK", "22", "23", "54", "42501", "P0002", "55P03", "55006", "40001", "0A000"}

// Each function is called with hostile arguments by each role. It refuses them or does no
// harm, and no other session meets an error.
func TestHostileArgumentsHarmNoOtherSession(t *testing.T) {
	b := setup(t)
	ctx := t.Context()
	b.must(migrations.Roles(ctx, b.pool))
	b.register(oneGoStep)
	b.register(oneRubyStep)
	b.enqueueMany("ruby", `{}`, 3)
	b.exec(`SELECT tasker.set_webhook('shop', 'https://example.com/', '{task.*}', 'SECRET')`)

	type function struct {
		name  string
		types []string
	}
	rows, err := b.pool.Query(ctx, `SELECT p.proname::text, ARRAY(SELECT format_type(a, NULL) FROM unnest(p.proargtypes::oid[]) WITH ORDINALITY AS u(a, i) ORDER BY i)::text[]
		FROM pg_proc p WHERE p.pronamespace = 'tasker'::regnamespace AND p.prokind = 'f' AND p.prorettype <> 'trigger'::regtype ORDER BY 1, 2`)
	b.must(err)
	functions, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (f function, err error) { return f, row.Scan(&f.name, &f.types) })
	b.must(err)

	witness := func(after string) {
		t.Helper()
		if _, err := b.pool.Exec(ctx, `INSERT INTO tasker.tasks (namespace, name) VALUES ('test', 'one')`); err != nil {
			t.Fatalf("after %s an app can't enqueue: %v", after, err)
		}
	}
	calls := 0
	for _, role := range []string{"", "tasker_reader", "tasker_app", "tasker_operator"} {
		conn := b.stranger()
		if role != "" {
			conn = b.login(role)
		}
		_, err := conn.Exec(ctx, `SET statement_timeout = '5s'`)
		b.must(err)
		call := func(f function, arguments []string) (may bool) {
			t.Helper()
			calls++
			for i := range arguments {
				arguments[i] = "(" + arguments[i] + ")::" + f.types[i]
			}
			sql := fmt.Sprintf("SELECT tasker.%s(%s)", f.name, strings.Join(arguments, ", "))
			_, err := conn.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol)
			var refused *pgconn.PgError
			switch {
			case err == nil:
			case !errors.As(err, &refused):
				t.Fatalf("%s: %s: %v", role, sql, err)
			case !slices.ContainsFunc(refusals, func(code string) bool { return strings.HasPrefix(refused.Code, code) }),
				strings.Contains(refused.Message, "RAISE statement option cannot be null"):
				t.Errorf("%s: %s (%s), by %.400s", role, refused.Message, refused.Code, sql)
			}
			return refused == nil || refused.Code != "42501"
		}
		for _, f := range functions {
			usual := func() []string {
				arguments := make([]string, len(f.types))
				for i, kind := range f.types {
					arguments[i] = "NULL"
					if values := hostile[kind]; values != nil {
						arguments[i] = values[0]
					}
				}
				return arguments
			}
			if !call(f, usual()) {
				continue
			}
			for i, kind := range f.types {
				for _, value := range hostile[kind][min(1, len(hostile[kind])):] {
					arguments := usual()
					arguments[i] = value
					call(f, arguments)
				}
			}
			for n := range 12 { // all of them hostile
				arguments := usual()
				for i, kind := range f.types {
					if values := hostile[kind]; values != nil {
						arguments[i] = values[n%len(values)]
					}
				}
				call(f, arguments)
			}
			witness(role + " tasker." + f.name)
		}
	}
	t.Logf("%d functions, %d calls", len(functions), calls)
	// An operator may have paused and cancelled; nothing else is left behind.
	b.exec(`UPDATE tasker.gates SET paused_at = NULL, max_attempts = NULL, per_second = NULL, version = version + 1`)
	b.exec(`SELECT tasker.resume_task(task_id) FROM tasker.tasks WHERE paused_at IS NOT NULL`)
	b.start()
	b.sidekiq()
	b.finish()
	b.healthy()
}
