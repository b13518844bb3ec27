//go:build linux

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/migrations"
	"github.com/taskerhq/tasker/store"
)

// A hostile login is no fault that comes and goes: two of them are there throughout.
// One has no right at all, which leaves it notifications and advisory locks. The other
// one has the rights of an app, and acts for attempts and processes that are not its own.

const hostilePassword = "chaos"

// makeHostile creates the two logins.
func (r *run) makeHostile(ctx context.Context) error {
	if err := migrations.Roles(ctx, r.pool); err != nil {
		return err
	}
	for name, of := range map[string]string{"stranger": "", "hostile_app": " IN ROLE tasker_app"} {
		if _, err := r.pool.Exec(ctx, fmt.Sprintf(`CREATE ROLE %s LOGIN PASSWORD '%s'%s`, name, hostilePassword, of)); err != nil {
			return fmt.Errorf("create the login %s: %w", name, err)
		}
	}
	return nil
}

// target is something to be hostile to, as a reader may know it.
type target struct {
	task, step, process int64
	worker              int64
	attempt             int
}

// harass is both of them until ctx ends. It returns how much they did.
func (r *run) harass(ctx context.Context) (acts int) {
	random := rand.New(rand.NewPCG(uint64(r.seed), 3))
	conns := map[string]*pgx.Conn{}
	defer func() {
		for _, conn := range conns {
			_ = conn.Close(context.WithoutCancel(ctx)) // all is over
		}
	}()
	for ctx.Err() == nil {
		name := pick(random, []string{"stranger", "hostile_app"})
		if conns[name] == nil {
			u, err := url.Parse(r.postgres.URL("chaos"))
			if err == nil {
				u.User = url.UserPassword(name, hostilePassword)
				conns[name], err = pgx.Connect(ctx, u.String())
			}
			if err != nil { // Postgres is away, or has no connection left
				delete(conns, name)
			}
		}
		if conn := conns[name]; conn != nil {
			if _, err := conn.Exec(ctx, r.hostility(ctx, name, random), pgx.QueryExecModeSimpleProtocol); err == nil {
				acts++
			} else if conn.IsClosed() {
				delete(conns, name)
			}
		}
		select {
		case <-time.After(time.Duration(5+random.IntN(40)) * time.Millisecond): // its pace
		case <-ctx.Done():
		}
	}
	return acts
}

// hostility is one thing to do.
func (r *run) hostility(ctx context.Context, login string, random *rand.Rand) string {
	var t target
	// The answer does not matter: made-up numbers do as well.
	_ = r.pool.QueryRow(ctx, `SELECT t.task_id, s.step_id, s.attempts, coalesce(t.owner, (SELECT max(worker_id) FROM tasker.workers)),
			coalesce((SELECT max(process_id) FROM tasker.processes), 1)
		FROM tasker.tasks t JOIN tasker.steps s USING (task_id) WHERE t.state IN ('pending', 'in_progress') ORDER BY random() LIMIT 1`).
		Scan(&t.task, &t.step, &t.attempt, &t.worker, &t.process)
	attempt := t.attempt + random.IntN(3) - 1
	if login == "stranger" {
		switch random.IntN(4) {
		case 0:
			return fmt.Sprintf(`SELECT pg_notify('tasker.river_insert', '{"queue": "default", "task_id": %d, "job_id": %d}')`, t.task, random.IntN(1000))
		case 1:
			lock := pick(random, []string{"pg_try_advisory_lock", "pg_try_advisory_lock_shared", "pg_advisory_unlock_all"})
			if lock == "pg_advisory_unlock_all" {
				return `SELECT pg_advisory_unlock_all()`
			}
			return fmt.Sprintf(`SELECT %s(1953721202, n) FROM generate_series(-5, %d) n`, lock, t.worker)
		case 2:
			return fmt.Sprintf(`SELECT pg_notify('tasker.worker_%d', '%s')`, t.worker, strings.Repeat(pick(random, []string{"x", "c1.", "d", "1,"}), 2000)) // up to 8,000 bytes
		default:
			kind := pick(random, store.NotificationKinds())
			return fmt.Sprintf(`SELECT pg_notify('tasker.worker_%d', '%s')`, t.worker, pick(random, []string{
				fmt.Sprint(kind, t.task), fmt.Sprint(kind, t.step), fmt.Sprintf("%s%d.%d.%d", kind, t.step, attempt, t.task),
				fmt.Sprintf("%s%d.%d.%d.%d", kind, t.step, attempt, t.task, random.Int64N(1<<48)),
			}))
		}
	}
	return pick(random, []string{
		fmt.Sprintf(`SELECT tasker.report_results('[{"step_id": %d, "attempt": %d, "outcome": "success", "secret": 1}]')`, t.step, attempt),
		fmt.Sprintf(`SELECT tasker.report_results('[{"step_id": %d, "attempt": %d, "outcome": "lost"}]')`, t.step, attempt),
		fmt.Sprintf(`SELECT tasker.start_attempt(%d, %d, %d, %d)`, t.step, attempt, t.process, random.Int64N(1<<48)),
		fmt.Sprintf(`SELECT tasker.start_attempt(%d, %d)`, t.step, attempt),
		fmt.Sprintf(`SELECT tasker.heartbeat(%d, %d, '{"rows": 1}')`, t.step, attempt),
		fmt.Sprintf(`SELECT tasker.process_stopped(%d)`, t.process),
		fmt.Sprintf(`SELECT tasker.process_beat(%d, '{"a": 1e9}')`, t.process),
		`SELECT tasker.fall_asleep('x', '', '{%}', true)`,
		`SELECT tasker.fall_asleep('x', 'c', '{"a\\"}', true)`,
		`SELECT tasker.read_events(tasker.event_cursor_since(), '{*}', 10, 'r', repeat('x', 64))`,
		fmt.Sprintf(`SELECT tasker.await_task(%d, 'hostile')`, t.task),
		fmt.Sprintf(`SELECT tasker.publish_event('hostile.event', '{"task_id": %d}', %d)`, t.task, t.task),
		`SET tasker.template = '''chaos'',''x'',NULL:1:9.9.9'`,
	})
}
