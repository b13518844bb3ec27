// Package taskertest is for tests of programs with Go handlers: it lets time
// pass in a test database, so that no test waits for a retry, a deadline, or a
// task of tomorrow.
//
//	taskertest.Mark(ctx, pool)                     // once per database
//	task := enqueue(…)                             // whose step fails and is tried again in five minutes
//	taskertest.Travel(ctx, pool, 5*time.Minute)    // begins it at once
//
// It moves the past, not the clock: every point in time that belongs to tasks
// goes back. Workers and processes stay alive. An attempt of a Go step that runs
// keeps the timeout that its worker has begun to count. A handler alone needs
// none of this: call it with a tasker.Attempt.
package taskertest

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskerhq/tasker/store"
)

// Mark marks the pool's database as one for tests. Without it Travel refuses:
// a production database never has the mark, as neither dumps nor copies take it
// along. Only the database's owner may set it.
func Mark(ctx context.Context, pool *pgxpool.Pool) error { return store.New(pool).MarkForTests(ctx) }

// Travel lets d pass, for all tasks of the pool's database: what is due then
// begins, or ends, at once. An error says what refused it: a database that is not
// marked, or a d below 0.
func Travel(ctx context.Context, pool *pgxpool.Pool, d time.Duration) error {
	return store.New(pool).Travel(ctx, d)
}
