//go:build linux

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// happened is a fault that was brought about.
type happened struct {
	fault    *fault
	apart    bool // the next one came when what this was about had recovered
	from     time.Time
	tasks    []int64
	steps    []int64 // 0: the task as a whole
	recovery []time.Duration
}

// strike brings a fault about.
func (r *run) strike(ctx context.Context, f *fault) (*happened, error) {
	h := &happened{fault: f}
	err := f.do(ctx, r, func(sql string, args ...any) {
		var task int64
		var step *int64
		rows, _ := r.pool.Query(ctx, sql, args...) // ForEachRow has its error
		_, err := pgx.ForEachRow(rows, []any{&task, &step}, func() error {
			h.tasks = append(h.tasks, task)
			var of int64
			if step != nil {
				of = *step
			}
			h.steps = append(h.steps, of)
			return nil
		})
		if err != nil { // it is away already, from the fault before
			h.tasks, h.steps = nil, nil
		}
		h.from = r.now(ctx)
	})
	if err != nil && ctx.Err() == nil {
		return nil, fmt.Errorf("%s: %w", f.name, err)
	}
	if f.healed {
		h.from = r.now(ctx)
	}
	return h, nil
}

// now is Postgres's time, by which its events are.
func (r *run) now(ctx context.Context) time.Time {
	now := time.Now().Add(r.ahead) // when it is away: one machine
	_ = r.pool.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&now)
	return now
}

// measure says how long it took each that a fault was about to get on. Who gets on by
// getting a place at the limit has waited for its turn, not for a recovery: it is
// neither counted nor waited for.
func (r *run) measure(ctx context.Context, h *happened) (waiting int, err error) {
	var seconds []float64
	err = r.pool.QueryRow(ctx, `
		SELECT coalesce(array_agg(extract(epoch FROM x.created_at - $3)) FILTER (WHERE x.created_at IS NOT NULL AND NOT x.turn), '{}'),
		       count(*) FILTER (WHERE x.created_at IS NULL AND x.open)
		FROM unnest($1::bigint[], $2::bigint[]) AS s(task_id, step_id)
		CROSS JOIN LATERAL (
			SELECT e.created_at, EXISTS (
			           SELECT FROM tasker.steps w JOIN tasker.template_steps ts ON ts.template_id = t.template_id AND ts.position = w.position
			           WHERE w.step_id = e.step_id AND ts.limit_key IS NOT NULL
			             AND e.name = CASE WHEN ts.handler IS NULL THEN 'step.execution_requested' ELSE 'step.handle' END) AS turn,
			       t.state IN ('pending', 'in_progress') AND NOT EXISTS (SELECT FROM tasker.gate_waiters l WHERE l.task_id = t.task_id) AS open
			FROM tasker.tasks t LEFT JOIN LATERAL (
				SELECT e.created_at, e.step_id, e.name FROM tasker.events e
				WHERE e.task_id = t.task_id AND (s.step_id = 0 OR e.step_id = s.step_id) AND e.created_at > $3
				ORDER BY e.created_at, e.event_id LIMIT 1) e ON true
			WHERE t.task_id = s.task_id
			OFFSET 0) x`, h.tasks, h.steps, h.from).Scan(&seconds, &waiting)
	h.recovery = h.recovery[:0]
	for _, s := range seconds {
		h.recovery = append(h.recovery, time.Duration(s*float64(time.Second)))
	}
	return waiting, err
}
