//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/template"
)

const ledger = `
CREATE SCHEMA chaos;
CREATE TABLE chaos.ledger (step_id bigint NOT NULL, attempt int NOT NULL, kind text NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE INDEX ON chaos.ledger (step_id);`

// shapes is how many templates there are, each in two versions.
const shapes = 12

// makeTemplates registers random DAGs of Go and Ruby steps. One in five steps
// fails once or twice before it succeeds, one in twenty-five for good. There are
// attempts to spare: one fails, too, that is cut off from the ledger.
func (r *run) makeTemplates(ctx context.Context) error {
	for shape := range shapes {
		for version := range 2 {
			yaml := randomTemplate(r.random, fmt.Sprintf("shape_%d", shape), fmt.Sprintf("1.%d.0", version))
			t, err := template.Parse("chaos.yaml", []byte(yaml), template.Options{})
			if err != nil {
				return fmt.Errorf("%w in\n%s", err, yaml)
			}
			if _, err := r.store.RegisterTemplate(ctx, t, template.Checksum(t)); err != nil {
				return err
			}
		}
	}
	three := 3
	return r.store.SetLimit(ctx, store.GateKey{Scope: "key", Name: "bank"}, store.Limit{MaxAttempts: &three}, store.Operator{})
}

func randomTemplate(random *rand.Rand, name, version string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "namespace_name: chaos\nname: %s\nversion: %s\nstep_templates:\n", name, version)
	for step := range 2 + random.IntN(7) {
		handler := fmt.Sprintf("handler: %s", goHandlers[random.IntN(len(goHandlers))])
		switch random.IntN(4) {
		case 0:
			handler = "handler_class: LedgerStep"
		case 1:
			handler = "handler_class: TransactionalLedgerStep"
		}
		w := work{Seconds: float64(random.IntN(40)) / 1000}
		switch random.IntN(25) {
		case 0:
			w.Permanent = true
		case 1, 2, 3, 4, 5:
			w.Times = 1 + random.IntN(2)
		}
		config, _ := json.Marshal(w) // numbers and a word always marshal
		var on []string
		for before := range step {
			if random.IntN(step) < 2 {
				on = append(on, fmt.Sprintf("s%d", before))
			}
		}
		limit := ""
		if random.IntN(8) == 0 {
			limit = ", limit_key: bank"
		}
		fmt.Fprintf(&b, "  - {name: s%d, %s, depends_on_steps: [%s], default_retry_limit: 50, retry: {base_seconds: 0.1, cap_seconds: 1}, timeout_seconds: 20, handler_config: %s%s}\n",
			step, handler, strings.Join(on, ", "), config, limit)
	}
	return b.String()
}

// load enqueues tasks so that about open of them are open, more in a flood, until ctx
// ends; it cancels one in a hundred.
func (r *run) load(ctx context.Context, open int) {
	random := rand.New(rand.NewPCG(uint64(r.seed), 2)) // its own: the faults come in their time
	for enqueued := 0; ctx.Err() == nil; {
		var now int
		err := r.pool.QueryRow(ctx, `SELECT count(*) FROM tasker.tasks WHERE state IN ('pending', 'in_progress')`).Scan(&now)
		if err == nil && now < open+int(r.flood.Load()) {
			for range 10 {
				var task int64
				// What the answer doesn't say may have happened all the same: a key makes it one task.
				err = r.pool.QueryRow(ctx, `SELECT tasker.enqueue_task('chaos', $1, '{}', version => $2, idempotency_key => $3)`,
					fmt.Sprintf("shape_%d", random.IntN(shapes)), fmt.Sprintf("1.%d.0", random.IntN(2)), fmt.Sprint(enqueued)).Scan(&task)
				if err != nil {
					break
				}
				enqueued++
				if random.IntN(100) == 0 {
					_, err = r.pool.Exec(ctx, `SELECT tasker.cancel_task($1, 'chaos')`, task)
				}
			}
			r.enqueued.Store(int64(enqueued))
		}
		if err != nil || now >= open+int(r.flood.Load()) {
			_ = wait(ctx, 50*time.Millisecond) // Postgres is away, or busy enough
		}
	}
}

// verdict says what is not as it must be, when all is quiet.
func (r *run) verdict(ctx context.Context) (broken []string, duplicates map[string]int, err error) {
	questions := []struct{ is, sql string }{
		{"tasks have not ended", `SELECT count(*) FROM tasker.tasks WHERE state IN ('pending', 'in_progress')`},
		{"tasks have ended otherwise than their steps say", `
			SELECT count(*) FROM tasker.tasks t WHERE t.state NOT IN ('cancelled') AND (t.state = 'error') IS DISTINCT FROM
				EXISTS (SELECT FROM tasker.template_steps s WHERE s.template_id = t.template_id AND (s.handler_config ->> 'permanent')::boolean)`},
		{"complete steps are not in the ledger", `
			SELECT count(*) FROM tasker.steps s WHERE s.state = 'complete' AND NOT EXISTS (SELECT FROM chaos.ledger l WHERE l.step_id = s.step_id)`},
		{"transactional steps are in the ledger twice, or without their result", `
			SELECT count(*) FROM (SELECT l.step_id, count(*) AS n, min(l.attempt) AS attempt FROM chaos.ledger l WHERE l.kind = 'transactional' GROUP BY l.step_id) l
			JOIN tasker.steps s USING (step_id) WHERE l.n <> 1 OR l.attempt <> s.attempts OR s.state <> 'complete'`},
		{"places at a limit are taken or waited for", `SELECT (SELECT count(*) FROM tasker.gate_slots) + (SELECT count(*) FROM tasker.gate_waiters)`},
	}
	for _, q := range questions {
		var n int
		if err := r.pool.QueryRow(ctx, q.sql).Scan(&n); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", q.is, err)
		}
		if n > 0 {
			broken = append(broken, fmt.Sprintf("%d %s", n, q.is))
		}
	}
	examined, err := r.store.Examine(ctx, store.ExamineOptions{})
	if err != nil {
		return nil, nil, err
	}
	for _, e := range examined {
		if e.Took > 2 {
			say("the check %s took %.1f s", e.Name, e.Took)
		}
		if e.Broken() {
			for _, f := range e.Findings {
				broken = append(broken, fmt.Sprintf("%s: %s", e.Name, f))
			}
		}
	}
	duplicates = map[string]int{}
	rows, err := r.pool.Query(ctx, `SELECT kind, sum(n - 1)::int FROM (SELECT kind, step_id, count(*) AS n FROM chaos.ledger GROUP BY 1, 2) l GROUP BY kind`)
	if err != nil {
		return nil, nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var kind string
		var n int
		if err := rows.Scan(&kind, &n); err != nil {
			return nil, nil, err
		}
		duplicates[kind] = n
	}
	return broken, duplicates, rows.Err()
}
