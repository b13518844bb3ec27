package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Gate is a limit or a pause that operators have set.
type Gate struct {
	ID          int32      `json:"gate_id"`
	Scope       string     `json:"scope"` // template, handler, queue or key
	Name        string     `json:"name"`
	MaxAttempts *int       `json:"max_attempts"` // out at once
	PerSecond   *float64   `json:"per_second"`   // that may start
	Burst       *float64   `json:"burst"`
	PausedAt    *time.Time `json:"paused_at"`
	ChangedAt   time.Time  `json:"changed_at"`
	ChangedBy   *string    `json:"changed_by"`
	Reason      *string    `json:"reason"`
	Out         int        `json:"attempts_out"` // that hold a place; counted where max_attempts is set
	Waiting     int        `json:"steps_waiting"`
}

// Set reports whether the gate does anything: a row stays when all is lifted.
func (g *Gate) Set() bool { return g.MaxAttempts != nil || g.PerSecond != nil || g.PausedAt != nil }

// Gates lists all gates, with what is out and waits.
func (s *Store) Gates(ctx context.Context) ([]Gate, error) {
	rows, err := s.pool.Query(ctx, `SELECT g.gate_id, g.scope, g.name, g.max_attempts, g.per_second, g.burst, g.paused_at,
			g.changed_at, g.changed_by, g.reason,
			(SELECT count(*) FROM tasker.gate_slots o WHERE o.gate_id = g.gate_id),
			(SELECT count(*) FROM tasker.gate_waiters w WHERE w.gate_id = g.gate_id)
		FROM tasker.gates g ORDER BY g.scope, g.name`)
	if err != nil {
		return nil, fmt.Errorf("list gates: %w", err)
	}
	gates, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Gate])
	if err != nil {
		return nil, fmt.Errorf("list gates: %w", err)
	}
	return gates, nil
}

// GateKey finds a gate by what it is for.
type GateKey struct{ Scope, Name string }

// KnownGates is what a worker knows of the gates. Version is what a write that
// claims has to bring along; it grows with each change of any gate.
type KnownGates struct {
	Version int64
	Gates   map[GateKey]int32 // those that are set
}

// KnownGates reads the gates as a worker needs them.
func (s *Store) KnownGates(ctx context.Context) (*KnownGates, error) {
	rows, err := s.pool.Query(ctx, `SELECT gate_id, scope, name, version, max_attempts IS NOT NULL OR per_second IS NOT NULL OR paused_at IS NOT NULL FROM tasker.gates`)
	if err != nil {
		return nil, fmt.Errorf("read gates: %w", err)
	}
	known := KnownGates{Gates: map[GateKey]int32{}}
	var (
		id      int32
		key     GateKey
		version int64
		set     bool
	)
	_, err = pgx.ForEachRow(rows, []any{&id, &key.Scope, &key.Name, &version, &set}, func() error {
		known.Version += version
		if set {
			known.Gates[key] = id
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read gates: %w", err)
	}
	return &known, nil
}

// AdmitWaiters admits those that are first in line where there is room, and
// says after how long it is worth doing again; 0: nobody waits.
func (s *Store) AdmitWaiters(ctx context.Context) (again time.Duration, err error) {
	var seconds *float64
	if err := s.pool.QueryRow(ctx, `SELECT tasker.admit_waiters()`).Scan(&seconds); err != nil {
		return 0, fmt.Errorf("admit waiting steps: %w", translate(err))
	}
	if seconds == nil {
		return 0, nil
	}
	return time.Duration(*seconds * float64(time.Second)), nil
}

// AdmittedTasks lists the worker's tasks that have steps which a gate lets pass.
func (s *Store) AdmittedTasks(ctx context.Context, worker int64) ([]int64, error) {
	rows, err := s.pool.Query(ctx, `SELECT DISTINCT l.task_id FROM tasker.gate_waiters l
		CROSS JOIN LATERAL (SELECT q.owner FROM tasker.tasks q WHERE q.task_id = l.task_id OFFSET 0) t
		WHERE l.admitted_until IS NOT NULL AND t.owner = $1`, worker)
	if err != nil {
		return nil, fmt.Errorf("read whom gates let pass: %w", err)
	}
	tasks, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("read whom gates let pass: %w", err)
	}
	return tasks, nil
}

// Limit is what SetLimit sets; nil lifts.
type Limit struct {
	MaxAttempts *int
	PerSecond   *float64
	Burst       *float64 // with PerSecond; nil: a tenth of a second's worth
}

// SetLimit sets the limits of a gate. ErrNotFound: no registered template has
// what it is for.
func (s *Store) SetLimit(ctx context.Context, key GateKey, l Limit, by Operator) error {
	return s.gateVerb(ctx, "limit", key, `SELECT tasker.set_limit($1, $2, $3, $4, $5, $6, $7)`,
		key.Scope, key.Name, l.MaxAttempts, l.PerSecond, l.Burst, text(by.Name), text(by.Reason))
}

// Pause lets nothing start behind a gate; Resume ends that.
func (s *Store) Pause(ctx context.Context, key GateKey, by Operator) error {
	return s.gateVerb(ctx, "pause", key, `SELECT tasker.pause($1, $2, $3, $4)`, key.Scope, key.Name, text(by.Name), text(by.Reason))
}

// Resume ends a pause. A *RefusedError: it is not paused.
func (s *Store) Resume(ctx context.Context, key GateKey, by Operator) error {
	return s.gateVerb(ctx, "resume", key, `SELECT tasker.resume($1, $2, $3, $4)`, key.Scope, key.Name, text(by.Name), text(by.Reason))
}

func (s *Store) gateVerb(ctx context.Context, what string, key GateKey, sql string, args ...any) error {
	if _, err := s.pool.Exec(ctx, sql, args...); err != nil {
		return fmt.Errorf("%s %s %s: %w", what, key.Scope, key.Name, translate(err))
	}
	return nil
}
