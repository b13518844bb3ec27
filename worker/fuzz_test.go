package worker_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/taskerhq/tasker/handler"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/testenv"
)

// What apps and handlers give to SQL functions may be anything: it is taken, or
// refused with a code of its own or one of the classes "bad value", "violated
// constraint" and "too large or too deep". It is never an error inside, and it
// never breaks what is promised. go test -fuzz FuzzSQLArguments ./worker goes on
// from the corpus in testdata/fuzz.
func FuzzSQLArguments(f *testing.F) {
	url := testenv.Database(f)
	pool := testenv.Pool(f, url)
	statements := []string{
		`SELECT tasker.enqueue_task('test', 'work', $1)`,
		`SELECT tasker.enqueue_task($1::jsonb ->> 0, $1::jsonb ->> 1, '{}', version => $1::jsonb ->> 2)`,
		`SELECT tasker.enqueue_task('test', 'work', '{}', idempotency_key => $1::jsonb #>> '{}', correlation_id => $1::jsonb #>> '{}', tags => ARRAY[$1::jsonb #>> '{}'])`,
		`SELECT tasker.report_results($1)`,
		`SELECT tasker.report_results(jsonb_build_array(jsonb_build_object('step_id', 1, 'attempt', 1, 'outcome', 'success', 'result', $1::jsonb)))`,
		`SELECT tasker.report_results(jsonb_build_array(jsonb_build_object('step_id', 1, 'attempt', 1, 'outcome', 'failure', 'failure', $1::jsonb)))`,
		`SELECT tasker.publish_event($1::jsonb #>> '{}', '{}')`,
		`SELECT tasker.publish_event('order.paid', $1)`,
		`SELECT tasker.subscribe($1::jsonb #>> '{}', ARRAY[$1::jsonb #>> '{}'], 'now')`,
		`SELECT tasker.heartbeat(1, 1, $1)`,
		`SELECT tasker.register_process($1::jsonb #>> '{}', $1)`,
		`SELECT tasker.retry_task(1, $1::jsonb #>> '{}', $1::jsonb #>> '{}', $1)`,
		`SELECT tasker.resolve_step(1, $1, $1::jsonb #>> '{}')`,
		`SELECT tasker.set_limit($1::jsonb ->> 0, $1::jsonb ->> 1, max_attempts => 1)`,
		`SELECT tasker.schema_problem($1, $1)`,
	}
	for i := range statements {
		for _, seed := range []string{`{}`, `[]`, `null`, `"a.b"`, `["test", "work", "1.0.0"]`, `[{"step_id": 1, "attempt": 1, "outcome": "success"}]`,
			`[{"step_id": 99999999999999999999, "attempt": -1, "outcome": 1}]`, `1e400`, `"\u0000"`, `{"a": [[[[[[[[1]]]]]]]]}`, `{"type": "object", "required": 7}`} {
			f.Add(uint8(i), seed)
		}
	}
	prepared := false
	f.Fuzz(func(t *testing.T, which uint8, document string) {
		b := &bundle{T: t, url: url, pool: pool, store: store.New(pool), handlers: handler.NewRegistry()}
		if !prepared {
			b.register(rubyWork)
			b.enqueue("work", `{}`)
			prepared = true
		}
		sql := statements[int(which)%len(statements)]
		if !json.Valid([]byte(document)) {
			document = `"` + strings.ToValidUTF8(document, "") + `"`
		}
		_, err := pool.Exec(context.Background(), sql, document)
		var refused *pgconn.PgError
		if err != nil && !errors.As(err, &refused) {
			t.Fatalf("%s with %q: %v", sql, document, err)
		}
		if refused != nil && !strings.HasPrefix(refused.Code, "TK") && refused.Code != "P0002" { // there is no such thing
			switch refused.Code[:2] {
			case "22", "23", "54":
			default:
				t.Errorf("%s with %q: %s (%s)", sql, document, refused.Message, refused.Code)
			}
			if strings.Contains(refused.Message, "RAISE statement option cannot be null") {
				t.Errorf("%s with %q: %s", sql, document, refused.Message)
			}
		}
	})
}
