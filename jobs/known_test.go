package jobs

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/riverqueue/river/riverdriver"

	"github.com/taskerhq/tasker/migrations"
	"github.com/taskerhq/tasker/testenv"
)

type runner func()

func (r runner) Run(context.Context, int64, int64) error { r(); return nil }

// Else a job whose end River is about to write would be taken for one whose fetch was
// lost, and would come again.
func TestAJobIsKnownUntilItsEndIsWritten(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	pool := testenv.Pool(t, testenv.Database(t))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var id int64
	must(pool.QueryRow(ctx, `INSERT INTO tasker.river_job (kind, args, queue, priority, max_attempts, state)
		VALUES ('task_execution', '{"task_id": 1}', 'default', 1, 1000, 'available') RETURNING id`).Scan(&id))
	known := &Known{}
	runs, ends := make(chan struct{}), make(chan struct{})
	client, err := NewClient(pool, Config{Schema: migrations.Schema, ID: "me", MaxTasks: 1, Known: known, Now: time.Now, Logger: slog.New(slog.DiscardHandler),
		Runner: runner(func() { close(runs); <-ends })})
	must(err)
	must(client.Start(ctx))
	defer func() { must(client.Stop(context.WithoutCancel(ctx))) }()
	<-runs
	held, err := pool.Begin(ctx)
	must(err)
	_, err = held.Exec(ctx, `SELECT FROM tasker.river_job WHERE id = $1 FOR UPDATE`, id)
	must(err)
	close(ends)
	for waits := false; !waits; time.Sleep(time.Millisecond) { // nobody tells who waits for a lock
		must(pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')`).Scan(&waits))
	}
	if ids := known.IDs(); !slices.Equal(ids, []int64{id}) {
		t.Errorf("knows %v while the end of %d is written", ids, id)
	}
	must(held.Rollback(ctx))
	for len(known.IDs()) > 0 {
		time.Sleep(time.Millisecond) // River tells nobody what it has written
	}
	var state string
	must(pool.QueryRow(ctx, `SELECT state FROM tasker.river_job WHERE id = $1`, id).Scan(&state))
	if state != "completed" {
		t.Errorf("forgotten while it is %s", state)
	}
}

// A worker that was paused, and declared dead meanwhile, writes the ends of jobs that
// others run by now.
func TestAJobThatRunsElsewhereIsNotEnded(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	pool := testenv.Pool(t, testenv.Database(t))
	var ids []int64
	if err := pool.QueryRow(ctx, `WITH made AS (INSERT INTO tasker.river_job (kind, args, queue, priority, max_attempts, state, attempt, attempted_at, attempted_by)
		SELECT 'task_execution', '{}', 'default', 1, 1000, 'running', 1, now(), by FROM (VALUES ('{other,me}'::text[]), ('{me,other}')) v (by) RETURNING id)
		SELECT array_agg(id ORDER BY id) FROM made`).Scan(&ids); err != nil {
		t.Fatal(err)
	}
	known := &Known{jobs: map[int64]time.Time{ids[0]: time.Now().Add(-time.Second), ids[1]: time.Now()}}
	p := &riverdriver.JobSetStateIfRunningManyParams{Schema: migrations.Schema}
	for _, id := range ids {
		o := riverdriver.JobSetStateCompleted(id, time.Now(), nil)
		p.ID, p.Attempt, p.ErrData = append(p.ID, id), append(p.Attempt, o.Attempt), append(p.ErrData, o.ErrData)
		p.FinalizedAt, p.ScheduledAt, p.State = append(p.FinalizedAt, o.FinalizedAt), append(p.ScheduledAt, o.ScheduledAt), append(p.State, o.State)
		p.MetadataDoMerge, p.MetadataUpdates = append(p.MetadataDoMerge, o.MetadataDoMerge), append(p.MetadataUpdates, o.MetadataUpdates)
	}
	for range 2 { // River may say it again
		if _, err := newDriver(pool, migrations.Schema, "me", known, nil).GetExecutor().JobSetStateIfRunningMany(ctx, p); err != nil {
			t.Fatal(err)
		}
	}
	var states string
	if err := pool.QueryRow(ctx, `SELECT string_agg(state::text, ' ' ORDER BY id) FROM tasker.river_job`).Scan(&states); err != nil || states != "completed running" {
		t.Errorf("%s (%v)", states, err)
	}
	if left := known.IDs(); len(left) > 0 {
		t.Errorf("knows %v still", left)
	}
}

func TestAJobIsForgottenWhoseEndCannotBeWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		known := &Known{}
		known.begin(1)
		known.end(1)
		known.begin(2) // it has come again while its first end was written
		known.written([]int64{2})
		time.Sleep(unwritten) // simulated
		if ids := known.IDs(); len(ids) != 2 {
			t.Errorf("knows %v at first", ids)
		}
		time.Sleep(time.Second)
		if ids := known.IDs(); !slices.Equal(ids, []int64{2}) {
			t.Errorf("knows %v at last", ids)
		}
	})
}
