//go:build linux

package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/devstack"
	"github.com/taskerhq/tasker/migrations"
)

// fault is one way in which things go wrong.
type fault struct {
	name string
	what string
	// do brings it about and returns when it is over. Before it does anything it
	// calls struck with a query for those that it is about: steps or tasks, and the
	// time from which on they can't get on by themselves. They have recovered with
	// their next event.
	do func(ctx context.Context, r *run, struck func(sql string, args ...any)) error
	// healed: what it is about can only recover when it is over.
	healed bool
	weight int
}

// Whom a fault is about.
const (
	ofWorker   = `SELECT t.task_id, NULL::bigint FROM tasker.tasks t JOIN tasker.workers w ON w.worker_id = t.owner WHERE w.name = $1 AND t.state IN ('pending', 'in_progress')`
	ofProcess  = `SELECT d.task_id, d.step_id FROM tasker.dispatches d JOIN tasker.processes p USING (process_id) WHERE p.identity LIKE $1 || ':%' AND d.failure IS NULL`
	allOpen    = `SELECT t.task_id, NULL::bigint FROM tasker.tasks t WHERE t.state IN ('pending', 'in_progress')`
	unstarted  = `SELECT d.task_id, d.step_id FROM tasker.dispatches d WHERE d.started_at IS NULL AND d.failure IS NULL`
	allInRedis = `SELECT d.task_id, d.step_id FROM tasker.dispatches d WHERE d.failure IS NULL`
)

var faults = []fault{
	{name: "worker killed", what: "SIGKILL, and started again within two seconds", weight: 4,
		do: func(ctx context.Context, r *run, struck func(string, ...any)) error {
			p := pick(r.random, r.workers)
			struck(ofWorker, p.identity())
			if err := p.end(syscall.SIGKILL); err != nil {
				return err
			}
			return r.after(ctx, 0, 2*time.Second, func() error { return p.start() })
		}},
	{name: "worker paused", what: "SIGSTOP for longer than its lease, then SIGCONT: it must not write", weight: 3,
		do: func(ctx context.Context, r *run, struck func(string, ...any)) error {
			p := pick(r.random, r.workers)
			struck(ofWorker, p.identity())
			if err := p.signal(syscall.SIGSTOP); err != nil {
				return err
			}
			return r.after(ctx, 6*time.Second, 10*time.Second, func() error { return p.signal(syscall.SIGCONT) })
		}},
	{name: "worker replaced", what: "SIGTERM, and another in its place, as in a deployment", weight: 2,
		do: func(ctx context.Context, r *run, struck func(string, ...any)) error {
			p := pick(r.random, r.workers)
			struck(ofWorker, p.identity())
			return p.replace(p.of)
		}},
	{name: "handler missing", what: "one worker runs for a while without one of the two Go handlers", weight: 1,
		do: func(ctx context.Context, r *run, struck func(string, ...any)) error {
			p := pick(r.random, r.workers)
			struck(ofWorker, p.identity())
			if err := p.end(syscall.SIGTERM); err != nil {
				return err
			}
			if err := p.start("-without", pick(r.random, goHandlers)); err != nil {
				return err
			}
			return r.after(ctx, 4*time.Second, 8*time.Second, func() error { return p.replace(p.of) })
		}},
	{name: "Sidekiq killed", what: "SIGKILL, and started again within two seconds: its jobs are gone", weight: 4,
		do: func(ctx context.Context, r *run, struck func(string, ...any)) error {
			p := pick(r.random, r.sidekiqs)
			struck(ofProcess, p.identity())
			if err := p.end(syscall.SIGKILL); err != nil {
				return err
			}
			return r.after(ctx, 0, 2*time.Second, func() error { return p.start() })
		}},
	{name: "Sidekiq paused", what: "SIGSTOP for longer than it may be silent, then SIGCONT: its results are late", weight: 2,
		do: func(ctx context.Context, r *run, struck func(string, ...any)) error {
			p := pick(r.random, r.sidekiqs)
			struck(ofProcess, p.identity())
			if err := p.signal(syscall.SIGSTOP); err != nil {
				return err
			}
			return r.after(ctx, 11*time.Second, 15*time.Second, func() error { return p.signal(syscall.SIGCONT) })
		}},
	{name: "Sidekiq replaced", what: "SIGTERM, and another in its place", weight: 2,
		do: func(ctx context.Context, r *run, struck func(string, ...any)) error {
			p := pick(r.random, r.sidekiqs)
			struck(ofProcess, p.identity())
			return p.replace(p.of)
		}},
	{name: "Postgres crashed", what: "immediate stop, started again within two seconds", weight: 3, healed: true,
		do: func(ctx context.Context, r *run, struck func(string, ...any)) error {
			struck(allOpen)
			if err := r.postgres.StopImmediate(ctx); err != nil {
				return err
			}
			return r.after(ctx, 0, 2*time.Second, func() error { return r.postgres.Restart(ctx) })
		}},
	{name: "Postgres killed", what: "SIGKILL of the server, started again", weight: 1, healed: true,
		do: func(ctx context.Context, r *run, struck func(string, ...any)) error {
			struck(allOpen)
			if err := r.postgres.Kill(); err != nil {
				return err
			}
			return r.after(ctx, time.Second, 4*time.Second, func() error { return r.postgres.Restart(ctx) })
		}},
	{name: "backends terminated", what: "pg_terminate_backend of a random one, five times a second, for four seconds", weight: 3, healed: true,
		do: func(ctx context.Context, r *run, struck func(string, ...any)) error {
			struck(allOpen)
			for range 20 {
				_, err := r.pool.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
					WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE 'tasker%' ORDER BY random() LIMIT 1`)
				if err != nil {
					return err
				}
				if err := wait(ctx, 200*time.Millisecond); err != nil {
					return err
				}
			}
			return nil
		}},
	{name: "cut off from Postgres", what: "one process hears nothing from Postgres for three to nine seconds; then the connections break, or go on", weight: 3,
		do: func(ctx context.Context, r *run, struck func(string, ...any)) error {
			p := pick(r.random, r.everyone())
			if p.ruby {
				struck(ofProcess, p.identity())
			} else {
				struck(ofWorker, p.identity())
			}
			cut := r.random.IntN(2) == 0
			p.postgres.paused.close()
			return r.after(ctx, 3*time.Second, 9*time.Second, func() error {
				if cut {
					p.postgres.cut()
				}
				p.postgres.paused.reopen()
				return nil
			})
		}},
	{name: "answers lost", what: "a statement, mostly one that commits, ends and its answer never arrives; thirty times, at one process", weight: 3, healed: true,
		do: func(ctx context.Context, r *run, struck func(string, ...any)) error {
			p := pick(r.random, r.everyone())
			struck(allOpen)
			p.postgres.loseAnswer.Store(30)
			return r.after(ctx, 3*time.Second, 5*time.Second, func() error { p.postgres.loseAnswer.Store(0); return nil })
		}},
	{name: "notifications lost", what: "no notification reaches the workers for six seconds", weight: 2,
		do: func(ctx context.Context, r *run, struck func(string, ...any)) error {
			struck(allOpen)
			for _, p := range r.workers {
				p.postgres.swallow.Store(true)
			}
			return r.after(ctx, 6*time.Second, 6*time.Second, func() error {
				for _, p := range r.workers {
					p.postgres.swallow.Store(false)
				}
				return nil
			})
		}},
	{name: "connections exhausted", what: "somebody takes all connections that the server has left, and the workers' are cut, for four seconds", weight: 1, healed: true,
		do: func(ctx context.Context, r *run, struck func(string, ...any)) error {
			struck(allOpen)
			var taken []*pgx.Conn
			for _, p := range r.everyone() {
				p.postgres.cut()
			}
			for {
				c, err := pgx.Connect(ctx, r.postgres.URL("chaos"))
				if err != nil {
					break // that was the last
				}
				taken = append(taken, c)
			}
			return r.after(ctx, 4*time.Second, 4*time.Second, func() error {
				for _, c := range taken {
					_ = c.Close(context.WithoutCancel(ctx)) // given back
				}
				return nil
			})
		}},
	{name: "tables locked", what: "a migration holds tasker.tasks or tasker.steps exclusively for three seconds", weight: 2, healed: true,
		do: func(ctx context.Context, r *run, struck func(string, ...any)) error {
			struck(allOpen)
			table := pick(r.random, []string{"tasks", "steps", "dispatches"})
			return pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
				if _, err := tx.Exec(ctx, `LOCK TABLE tasker.`+table+` IN ACCESS EXCLUSIVE MODE`); err != nil {
					return err
				}
				return wait(ctx, 3*time.Second)
			})
		}},
	{name: "statistics of empty tables", what: "Postgres takes every table for empty, as where autovacuum looked at them in an idle minute, and a flood of tasks comes, for eight seconds", weight: 2, healed: true,
		do: func(ctx context.Context, r *run, struck func(string, ...any)) error {
			struck(allOpen)
			r.flood.Store(1000)
			defer r.flood.Store(0)
			for range 16 { // autovacuum looks again meanwhile
				if _, err := r.pool.Exec(ctx, `UPDATE pg_class SET reltuples = 0 WHERE relnamespace = 'tasker'::regnamespace AND relkind = 'r'`); err != nil {
					return err
				}
				if err := wait(ctx, 500*time.Millisecond); err != nil {
					return err
				}
			}
			return nil
		}},
	{name: "migrated", what: "the last two migrations are taken back, and made again three seconds later", weight: 2, healed: true,
		do: func(ctx context.Context, r *run, struck func(string, ...any)) error {
			struck(allOpen)
			if _, err := migrations.Down(ctx, r.pool, 2, false); err != nil {
				return err
			}
			return r.after(ctx, 3*time.Second, 3*time.Second, func() error { return migrations.Up(ctx, r.pool) })
		}},
	{name: "deployed", what: "all is taken back to an older version and its schema, and deployed again under load: migrations first, then one process after the other (with -old)", weight: 2, healed: true,
		do: func(ctx context.Context, r *run, struck func(string, ...any)) error {
			if r.old == nil {
				return errSkipped
			}
			struck(allOpen)
			for _, p := range r.everyone() {
				if err := p.end(syscall.SIGTERM); err != nil {
					return err
				}
			}
			if _, err := migrations.Down(ctx, r.pool, r.this.migrations-r.old.migrations, false); err != nil {
				return err
			}
			for _, p := range r.everyone() {
				p.of = r.old
				if err := p.start(); err != nil {
					return err
				}
			}
			err := r.after(ctx, 3*time.Second, 6*time.Second, func() error { return migrations.Up(ctx, r.pool) })
			for _, i := range r.random.Perm(4) {
				if err != nil {
					return err
				}
				err = r.after(ctx, time.Second, 4*time.Second, func() error { return r.everyone()[i].replace(r.this) })
			}
			return err
		}},
	{name: "disk full", what: "Postgres's disk is full for four seconds; what it doesn't survive it is started again from (with -small-disk)", weight: 1, healed: true,
		do: func(ctx context.Context, r *run, struck func(string, ...any)) error {
			if !r.smallDisk {
				return errSkipped
			}
			struck(allOpen)
			fill := filepath.Join(r.disk, "fill")
			if err := fillDisk(fill); err != nil {
				return err
			}
			return r.after(ctx, 4*time.Second, 4*time.Second, func() error {
				if err := os.Remove(fill); err != nil {
					return err
				}
				if r.postgres.PID() == 0 || r.pool.Ping(ctx) != nil {
					return r.postgres.Restart(ctx)
				}
				return nil
			})
		}},
	{name: "Redis killed", what: "SIGKILL, started again, empty", weight: 3, healed: true,
		do: func(ctx context.Context, r *run, struck func(string, ...any)) error {
			struck(allInRedis)
			if err := r.redis.Kill(); err != nil {
				return err
			}
			return r.after(ctx, 0, 3*time.Second, func() error { return r.redis.Restart(ctx) })
		}},
	{name: "Redis emptied", what: "FLUSHALL", weight: 2,
		do: func(ctx context.Context, r *run, struck func(string, ...any)) error {
			struck(unstarted)
			return r.redisClient.FlushAll(ctx).Err()
		}},
	{name: "Redis rolled back", what: "its queues are again what they were five seconds ago", weight: 2, healed: true,
		do: func(ctx context.Context, r *run, struck func(string, ...any)) error {
			before, err := r.payloads(ctx)
			if err != nil {
				return err
			}
			struck(unstarted)
			return r.after(ctx, 5*time.Second, 5*time.Second, func() error {
				if err := r.redisClient.FlushAll(ctx).Err(); err != nil {
					return err
				}
				return r.push(ctx, before)
			})
		}},
	{name: "cut off from Redis", what: "one process hears nothing from Redis for three to nine seconds", weight: 2, healed: true,
		do: func(ctx context.Context, r *run, struck func(string, ...any)) error {
			p := pick(r.random, r.everyone())
			struck(unstarted)
			p.redis.paused.close()
			return r.after(ctx, 3*time.Second, 9*time.Second, func() error {
				p.redis.cut()
				p.redis.paused.reopen()
				return nil
			})
		}},
	{name: "payloads doubled", what: "every job in the queues is there two or three times, in another order, for four seconds", weight: 3,
		do: func(ctx context.Context, r *run, struck func(string, ...any)) error {
			struck(unstarted)
			doubled := map[string]bool{}
			for range 20 {
				list, err := r.payloads(ctx)
				if err != nil {
					return err
				}
				var more []string
				for _, payload := range list {
					if doubled[payload] {
						continue
					}
					doubled[payload] = true
					for range 1 + r.random.IntN(2) {
						more = append(more, payload)
					}
				}
				r.random.Shuffle(len(more), func(i, j int) { more[i], more[j] = more[j], more[i] })
				if err := r.push(ctx, more); err != nil {
					return err
				}
				if err := wait(ctx, 200*time.Millisecond); err != nil {
					return err
				}
			}
			return nil
		}},
	{name: "payloads late", what: "the jobs in the queues disappear, and come back when their attempts are over", weight: 2,
		do: func(ctx context.Context, r *run, struck func(string, ...any)) error {
			struck(unstarted)
			var taken []string
			for range 10 {
				list, err := r.payloads(ctx)
				if err != nil {
					return err
				}
				taken = append(taken, list...)
				if err := r.redisClient.Del(ctx, "queue:default").Err(); err != nil {
					return err
				}
				if err := wait(ctx, 100*time.Millisecond); err != nil {
					return err
				}
			}
			return r.after(ctx, 16*time.Second, 20*time.Second, func() error { return r.push(ctx, taken) })
		}},
	{name: "clock wrong", what: "one Sidekiq runs with a clock ten minutes fast or slow", weight: 1,
		do: func(ctx context.Context, r *run, struck func(string, ...any)) error {
			p := pick(r.random, r.sidekiqs)
			clock, err := devstack.WrongClock(ctx, r.dir, pick(r.random, []time.Duration{wrongBy, -wrongBy}))
			if errors.Is(err, devstack.ErrNoWrongClock) {
				return errSkipped
			} else if err != nil {
				return err
			}
			struck(ofProcess, p.identity())
			if err := p.end(syscall.SIGTERM); err != nil {
				return err
			}
			env := p.env
			p.env = append(env[:len(env):len(env)], clock...)
			err = p.start()
			p.env = env
			if err != nil {
				return err
			}
			return r.after(ctx, 10*time.Second, 15*time.Second, func() error {
				if err := p.end(syscall.SIGTERM); err != nil {
					return err
				}
				return p.start()
			})
		}},
}

// fillDisk writes zeros until no byte more goes in.
func fillDisk(path string) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	block := make([]byte, 1<<20)
	for len(block) > 0 {
		n, err := file.Write(block)
		switch {
		case errors.Is(err, syscall.ENOSPC):
			block = block[:(len(block)-n)/2]
		case err != nil:
			return err
		}
	}
	return nil
}

// wrongBy is how wrong a clock is.
const wrongBy = 10 * time.Minute

func pick[T any](random *rand.Rand, of []T) T { return of[random.IntN(len(of))] }

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// after does something within the given times. It does it also when the run is
// interrupted: what was stopped or paused must be able to end.
func (r *run) after(ctx context.Context, least, most time.Duration, do func() error) error {
	_ = wait(ctx, least+time.Duration(r.random.Int64N(int64(most-least)+1))) // shorter, if interrupted
	return do()
}

func (r *run) everyone() []*process {
	return append(append([]*process(nil), r.workers...), r.sidekiqs...)
}

func (r *run) payloads(ctx context.Context) ([]string, error) {
	return r.redisClient.LRange(ctx, "queue:default", 0, -1).Result()
}

func (r *run) push(ctx context.Context, payloads []string) error {
	if len(payloads) == 0 {
		return nil
	}
	values := make([]any, len(payloads))
	for i, p := range payloads {
		values[i] = p
	}
	return r.redisClient.LPush(ctx, "queue:default", values...).Err()
}
