package worker_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/taskerhq/tasker"
)

// Attempts that go wrong in their own ways, each to its exact number of
// attempts and delay, and their results into the step behind.
func TestEachWayToGoWrongHasItsDelayAndItsEnd(t *testing.T) {
	b := setup(t)
	// A Retry-After date knows whole seconds only.
	date := time.Now().Add(4 * time.Second).Truncate(time.Second)
	text := date.UTC().Format(http.TimeFormat)
	var asked atomic.Int64
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) == 1 {
			w.Header().Set("Retry-After", text)
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(service.Close)
	b.handlers.AllowHTTP(strings.TrimPrefix(service.URL, "http://"))
	b.register(fmt.Sprintf(`
name: ways
namespace_name: test
retry: {backoff: fixed, base_seconds: 1000, cap_seconds: 1000}
step_templates:
  - {name: number_go, handler: tasker.fail, handler_config: {times: 1, retry_after: 0.15}}
  - {name: number_ruby, handler_class: Fail, handler_config: {times: 1, retry_after: 0.15}}
  - {name: date_go, handler: tasker.http, handler_config: {url: %q}}
  - {name: date_ruby, handler_class: Fail, handler_config: {times: 1, retry_after: %q}}
  - {name: lost, handler_class: Echo, queue: hand, default_retryable: false}
  - {name: optional_go, handler: tasker.fail, handler_config: {permanent: true}, skippable: true}
  - {name: optional_ruby, handler_class: Fail, handler_config: {permanent: true}, skippable: true}
  - {name: end, handler: tasker.echo, depends_on_steps: [number_go, number_ruby, lost, optional_go, optional_ruby]}`, service.URL, text))
	b.start()
	b.sidekiq()
	task := b.enqueue("ways", `{}`)
	lost := b.dispatchedStep(task, "lost")
	for attempt, outcome := range []string{`"lost"`, `"success", "result": 7`} {
		b.until("the attempt is out", func() bool {
			s := b.step(task, "lost")
			return s.State == tasker.StepEnqueued && s.Attempts == attempt+1
		})
		if ok, reason := b.report(`{"step_id": %d, "attempt": %d, "outcome": `+outcome+`}`, lost, attempt+1); !ok {
			t.Fatal(reason)
		}
	}
	b.finish()
	b.want(`number_go complete 2 0, number_ruby complete 2 0, date_go complete 2 0, date_ruby complete 2 0, lost complete 2 1,`+
		` optional_go skipped 1 0, optional_ruby skipped 1 0, end complete 1 0`,
		`SELECT string_agg(concat_ws(' ', name, state, attempts, losses), ', ' ORDER BY position) FROM tasker.steps`)
	b.want(`{"dependencies": {"lost": 7, "number_go": {"attempts": 2}, "number_ruby": {"attempts_used": 2}, "optional_go": null, "optional_ruby": null}}`,
		`SELECT result::text FROM tasker.steps WHERE name = 'end'`)
	b.want("number_go  0.15, number_ruby  0.15, lost attempt_lost 0", `SELECT string_agg(s.name || ' ' || coalesce(e.data ->> 'code', '') || ' ' || (e.data ->> 'retry_in_seconds'), ', ' ORDER BY position)
		FROM tasker.events e JOIN tasker.steps s USING (step_id) WHERE e.name = 'step.retry_requested' AND s.name NOT LIKE 'date%'`)
	b.want("2 t", `SELECT concat_ws(' ', count(*), bool_and((data ->> 'retry_in_seconds')::float BETWEEN 0 AND 4))
		FROM tasker.events e JOIN tasker.steps s USING (step_id) WHERE e.name = 'step.retry_requested' AND s.name LIKE 'date%'`)
	// No attempt was early: neither by the delay that was decided, nor by the
	// date that was asked for.
	b.want("0", `SELECT count(*)::text FROM tasker.events r JOIN tasker.events n ON n.step_id = r.step_id AND n.attempt = r.attempt + 1
		WHERE r.name = 'step.retry_requested' AND n.created_at < r.created_at + make_interval(secs => (r.data ->> 'retry_in_seconds')::float)`)
	b.want("0", `SELECT count(*)::text FROM tasker.events e JOIN tasker.steps s USING (step_id)
		WHERE s.name LIKE 'date%' AND e.attempt = 2 AND e.created_at < $1`, date)
}

// Whatever a process asks for, the delay lies between none and the cap, and the
// task goes on.
func TestDelaysThatMakeNoSenseAreBounded(t *testing.T) {
	b := setup(t)
	cases := []struct{ name, asks, decided string }{
		{"negative", `-5`, "0"},
		{"negative_text", `"-0.001"`, "0"},
		{"least", `1e-300`, "0"},
		{"fraction", `0.0005`, "0.0005"},
		{"huge", `1e300`, "7200"},
		{"beyond", `"1e999"`, "7200"},
		{"past", `"Sun, 06 Nov 1994 08:49:37 GMT"`, "0"},
		{"in_a_year", `"` + time.Now().AddDate(1, 0, 0).UTC().Format(http.TimeFormat) + `"`, "7200"},
		{"at_the_end", `"Fri, 31 Dec 9999 23:59:59 GMT"`, "7200"},
		{"words", `"soon"`, "0.03"}, // the step's own backoff
		{"object", `{"seconds": 1}`, "0.03"},
		{"truth", `true`, "0.03"},
		{"nothing", `null`, "0.03"},
	}
	var yaml, want strings.Builder
	yaml.WriteString("name: nonsense\nnamespace_name: test\nmax_parallel_steps: 100\nretry: {backoff: fixed, base_seconds: 0.03, jitter: 0, retry_after_cap_seconds: 7200}\nstep_templates:\n")
	for _, c := range cases {
		fmt.Fprintf(&yaml, "  - {name: %s, handler_class: Echo}\n", c.name)
		fmt.Fprintf(&want, "%s %s, ", c.name, c.decided)
	}
	b.register(yaml.String())
	b.start()
	task := b.enqueue("nonsense", `{}`)
	for _, c := range cases {
		step := b.dispatchedStep(task, c.name)
		if ok, reason := b.report(`{"step_id": %d, "attempt": 1, "outcome": "failure", "failure": {"class": "X", "message": "m", "retry_after": %s}}`, step, c.asks); !ok {
			t.Fatal(reason)
		}
	}
	b.until("every failure is decided on", func() bool {
		return b.number(`SELECT count(*) FROM tasker.events WHERE name = 'step.retry_requested'`) == len(cases)
	})
	b.want(strings.TrimSuffix(want.String(), ", "), `SELECT string_agg(concat_ws(' ', s.name, (e.data ->> 'retry_in_seconds')::float), ', ' ORDER BY position)
		FROM tasker.events e JOIN tasker.steps s USING (step_id) WHERE e.name = 'step.retry_requested'`)
	b.must(b.store.RunTaskNow(t.Context(), task, ada)) // two hours pass
	for _, c := range cases {
		b.until(c.name+" is tried again", func() bool { return b.step(task, c.name).Attempts == 2 })
		if ok, reason := b.report(`{"step_id": %d, "attempt": 2, "outcome": "success"}`, b.step(task, c.name).StepID); !ok {
			t.Fatal(reason)
		}
	}
	b.finish()
	b.want("complete", `SELECT state FROM tasker.tasks`)
}
