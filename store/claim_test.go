package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/testenv"
)

// A task is being given up, in a transaction that relies on the River job that
// led to this claim. If the claim were answered with "somebody else's", the job
// would end, and nothing would bring the task back.
func TestAClaimWaitsForAReleaseThatIsUnderWay(t *testing.T) {
	t.Parallel()
	ctx, pool := t.Context(), testenv.Pool(t, testenv.Database(t))
	s := store.New(pool)
	if _, err := pool.Exec(ctx, `SELECT tasker.register_template('n', 't', '1.0.0', '', '{}', 'c', 1, '[{"position": 0, "name": "s", "handler": "h", "attempt_limit": 1}]')`); err != nil {
		t.Fatal(err)
	}
	worker := func(name string) int64 {
		t.Helper()
		id, err := s.RegisterWorker(ctx, name, name, time.Hour, map[string]any{})
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	first, second := worker("first"), worker("second")
	var task, free int64
	if err := pool.QueryRow(ctx, `WITH i AS (INSERT INTO tasker.tasks (namespace, name) SELECT 'n', 't' FROM generate_series(1, 2) RETURNING task_id)
		SELECT min(task_id), max(task_id) FROM i`).Scan(&task, &free); err != nil {
		t.Fatal(err)
	}
	owned, err := s.NewClaimer(ctx, first).Claim(ctx, task)
	if err != nil || owned == nil {
		t.Fatalf("claim: got %v, %v", owned, err)
	}

	release, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = release.Rollback(ctx) }() // where the test ends early
	if _, err := release.Exec(ctx, `UPDATE tasker.tasks SET owner = NULL WHERE task_id = $1`, task); err != nil {
		t.Fatal(err)
	}
	claimer := s.NewClaimer(ctx, second)
	if got, err := claimer.Claim(ctx, task); got != nil || !errors.Is(err, store.ErrBusy) {
		t.Errorf("while the release is under way: got %v, %v, not ErrBusy", got, err)
	}
	if got, err := claimer.Claim(ctx, free); got == nil || err != nil || got.Steps[0].State != tasker.StepPending {
		t.Errorf("another task meanwhile: got %v, %v", got, err)
	}
	if err := release.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if got, err := claimer.Claim(ctx, task); got == nil || err != nil || got.Epoch != 2 {
		t.Errorf("afterwards: got %v, %v", got, err)
	}
	if got, err := s.NewClaimer(ctx, first).Claim(ctx, task); got != nil || err != nil {
		t.Errorf("one that is somebody else's: got %v, %v", got, err)
	}
}

// Two loops of one task, one after the other, may want to write at the same
// moment: the one that has lost the task is refused, and only it.
func TestUnitsOfOneTaskAreJudgedOneByOne(t *testing.T) {
	t.Parallel()
	ctx, pool := t.Context(), testenv.Pool(t, testenv.Database(t))
	s := store.New(pool)
	s.Groups = store.Groups{Connections: 1}
	if _, err := pool.Exec(ctx, `SELECT tasker.register_template('n', 't', '1.0.0', '', '{}', 'c', 1, '[{"position": 0, "name": "s", "handler": "h", "attempt_limit": 1}]');
		INSERT INTO tasker.tasks (namespace, name) VALUES ('n', 't')`); err != nil {
		t.Fatal(err)
	}
	worker, err := s.RegisterWorker(ctx, "w", "w", time.Hour, map[string]any{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // its epoch is 2 then
		if _, err := s.NewClaimer(ctx, worker).Claim(ctx, 1); err != nil {
			t.Fatal(err)
		}
	}
	writer := s.NewWriter(ctx, worker)
	writer.Expect(2) // they go together
	refused := make(chan error, 1)
	go func() {
		refused <- writer.Write(ctx, &store.Unit{Task: 1, Epoch: 1, Release: true, Rerun: new(time.Duration)})
	}()
	if err := writer.Write(ctx, &store.Unit{Task: 1, Epoch: 2, Release: true}); err != nil {
		t.Errorf("the loop that has the task: %v", err)
	}
	if err := <-refused; !errors.Is(err, store.ErrStale) {
		t.Errorf("the one that has not: got %v, not ErrStale", err)
	}
}

// The answer of a write was lost with its connection, and the write is sent
// again. By then its own claims fill the gates that they passed: to be denied
// there would leave them running with nobody who awaits them.
func TestAClaimThatIsWrittenTwiceIsStaleAtWhateverGate(t *testing.T) {
	t.Parallel()
	ctx, pool := t.Context(), testenv.Pool(t, testenv.Database(t))
	s := store.New(pool)
	if _, err := pool.Exec(ctx, `SELECT tasker.register_template('n', 't', '1.0.0', '', '{}', 'c', 1, '[{"position": 0, "name": "s", "handler": "h", "attempt_limit": 1}]');
		INSERT INTO tasker.tasks (namespace, name) SELECT 'n', 't' FROM generate_series(1, 4)`); err != nil {
		t.Fatal(err)
	}
	worker, err := s.RegisterWorker(ctx, "w", "w", time.Hour, map[string]any{})
	if err != nil {
		t.Fatal(err)
	}
	gate, claimer, writer := store.GateKey{Scope: "handler", Name: "h"}, s.NewClaimer(ctx, worker), s.NewWriter(ctx, worker)
	for task, limit := range map[int64]store.Limit{
		1: {MaxAttempts: new(1)},
		2: {MaxAttempts: new(10)},
		3: {PerSecond: new(0.001), Burst: new(1.0)},
		4: {PerSecond: new(1e6)},
	} {
		if _, err := pool.Exec(ctx, `DELETE FROM tasker.gate_slots; DELETE FROM tasker.gates`); err != nil {
			t.Fatal(err)
		}
		if err := s.SetLimit(ctx, gate, limit, store.Operator{Name: "o"}); err != nil {
			t.Fatal(err)
		}
		known, err := s.KnownGates(ctx)
		if err != nil {
			t.Fatal(err)
		}
		claimed, err := claimer.Claim(ctx, task)
		if err != nil || claimed == nil {
			t.Fatalf("claim: got %v, %v", claimed, err)
		}
		write := func() (*store.Unit, error) {
			u := &store.Unit{Task: task, Epoch: claimed.Epoch, Gates: known.Version, Steps: []store.StepWrite{{
				Step: claimed.Steps[0].StepID, Was: tasker.StepPending, State: tasker.StepInProgress, Attempt: 1, Gates: []int32{known.Gates[gate]},
			}}}
			return u, writer.Write(ctx, u)
		}
		if u, err := write(); err != nil || len(u.Denied) > 0 {
			t.Fatalf("task %d: got %v, denied %v", task, err, u.Denied)
		}
		if u, err := write(); !errors.Is(err, store.ErrStale) {
			t.Errorf("task %d, written again: got %v, denied %v, not ErrStale", task, err, u.Denied)
		}
	}
}
