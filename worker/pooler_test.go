package worker_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/devstack"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/testenv"
	"github.com/taskerhq/tasker/worker"
)

// throughPooler has everybody but the test itself reach the database through a
// pooler that gives each transaction another of a few sessions.
func (b *bundle) throughPooler() {
	b.Helper()
	pooler, err := devstack.StartPgBouncer(b.Context(), testenv.Dir(b.T), b.url, 8)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := pooler.Stop(context.Background()); err != nil {
			b.Error(err)
		}
	})
	// As docs/poolers.md asks.
	b.exec(`DO $$ BEGIN EXECUTE format('ALTER ROLE %I IN DATABASE %I SET search_path = pg_catalog, pg_temp', current_user, current_database()); END $$`)
	b.url = pooler.URL(b.text(`SELECT current_database()`))
}

func pollOnly(c *worker.Config) { c.PollOnly, c.PollEvery = true, 20*time.Millisecond }

const pooledWork = `
name: pooled
namespace_name: test
step_templates:
  - {name: first, handler: tasker.echo}
  - {name: ruby, handler_class: Work, handler_config: {seconds: 0.01}, depends_on_step: first}
  - {name: fails, handler: tasker.fail, handler_config: {times: 1}, depends_on_step: first, retry: {backoff: fixed, base_seconds: 0.1}}
  - {name: limited, handler: test.limited, depends_on_step: first}
  - {name: join, handler: tasker.echo, depends_on_steps: [ruby, fails, limited]}`

// Go steps, Ruby steps, retries and limits: all that is told by notification
// otherwise is found by looking.
func TestTasksRunThroughAPooler(t *testing.T) {
	b := setup(t)
	b.handlers.Register("test.limited", func(context.Context, *tasker.Attempt) (any, error) { return nil, nil })
	b.register(pooledWork)
	one := 1
	if err := b.store.SetLimit(t.Context(), store.GateKey{Scope: "handler", Name: "test.limited"}, store.Limit{MaxAttempts: &one}, store.Operator{}); err != nil {
		t.Fatal(err)
	}
	b.throughPooler()
	b.start(pollOnly)
	b.start(pollOnly) // places pass from one worker to the other
	b.sidekiq()
	b.enqueueMany("pooled", `{}`, 60)
	b.finish()
	b.want("60", `SELECT count(*)::text FROM tasker.tasks WHERE state = 'complete'`)
	b.want("60", `SELECT count(*)::text FROM tasker.steps WHERE name = 'fails' AND attempts = 2`)
	b.want("0", `SELECT sum(losses)::text FROM tasker.steps`)
	if listens := b.text(`SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND query ILIKE 'listen%tasker.worker%'`); listens != "0" {
		t.Errorf("%s sessions listen for a worker", listens)
	}
	b.checkHistory()
}

// What an operator does reaches a loop that nobody can tell.
func TestOperatorsReachTasksThroughAPooler(t *testing.T) {
	b := setup(t)
	begun, ended := make(chan int64, 2), make(chan int64, 2)
	b.handlers.Register("test.runs", func(ctx context.Context, a *tasker.Attempt) (any, error) {
		begun <- a.TaskID
		<-ctx.Done()
		ended <- a.TaskID
		return nil, ctx.Err()
	})
	b.register(`
name: runs
namespace_name: test
step_templates:
  - {name: only, handler: test.runs}`)
	b.throughPooler()
	b.start(pollOnly)
	task := b.enqueue("runs", `{}`)
	<-begun
	if err := b.store.CancelTask(t.Context(), task, store.Operator{Name: "me"}); err != nil {
		t.Fatal(err)
	}
	if got := <-ended; got != task {
		t.Errorf("the attempt of task %d ended, want %d", got, task)
	}
	b.want("cancelled", `SELECT state FROM tasker.tasks`)
}

// A worker that dies behind a pooler is found out like any other.
func TestAWorkerThatIsKilledBehindAPooler(t *testing.T) {
	b := setup(t)
	b.register(mixedGoSteps)
	b.throughPooler()
	settings := filepath.Join(t.TempDir(), "tasker.yaml")
	if err := os.WriteFile(settings, []byte("database: {mode: poll_only, poll_every: 20ms}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	first := b.worker("--config", settings)
	b.enqueueMany("mixed", `{}`, 50)
	b.until("the worker is in the middle", func() bool { return b.number(`SELECT count(*) FROM tasker.steps WHERE state = 'complete'`) > 20 })
	first.kill(b)
	b.start(pollOnly)
	b.finish()
	b.want("50", `SELECT count(*)::text FROM tasker.tasks WHERE state = 'complete'`)
	b.checkHistory()
}

// Who doesn't say that it is a pooler is told what to do.
func TestAWorkerThatMeetsAPoolerSaysSo(t *testing.T) {
	b := setup(t)
	b.throughPooler()
	err := worker.Run(t.Context(), worker.Config{DatabaseURL: b.url, Handlers: b.handlers})
	if err == nil || !strings.Contains(err.Error(), "set database.mode to poll_only") {
		t.Errorf("the worker says: %v", err)
	}
	b.exec(`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation = serializable', current_database()); END $$`)
	err = worker.Run(t.Context(), worker.Config{DatabaseURL: b.url, Handlers: b.handlers, PollOnly: true})
	if err == nil || !strings.Contains(err.Error(), "has to be read committed: ALTER ROLE") {
		t.Errorf("with transactions of another level, the worker says: %v", err)
	}
}
