package orchestrator_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/handler"
	"github.com/taskerhq/tasker/orchestrator"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/template"
	"github.com/taskerhq/tasker/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// witness stands at both seams where the engine acts on the world, Redis and Go
// handlers, and asks the database on the spot whether the attempt is committed.
// It does not stand in for either: worker's tests run the real ones.
type witness struct {
	t        *testing.T
	pool     *pgxpool.Pool
	registry *handler.Registry

	mu       sync.Mutex
	pushed   []tasker.Dispatch
	signal   chan struct{}
	attempts int
}

func (w *witness) committed(step int64, attempt int, state tasker.StepState) {
	var got string
	err := w.pool.QueryRow(context.Background(), `SELECT concat_ws(' ', state, attempts) FROM tasker.steps WHERE step_id = $1`, step).Scan(&got)
	if want := fmt.Sprintf("%s %d", state, attempt); err != nil || got != want {
		w.t.Errorf("attempt %d of step %d was acted on while the database had %q (%v), not %q", attempt, step, got, err, want)
	}
}

func (w *witness) Push(dispatches []tasker.Dispatch) {
	for _, d := range dispatches {
		w.committed(d.StepID, d.Attempt, tasker.StepEnqueued)
	}
	w.mu.Lock()
	w.pushed = append(w.pushed, dispatches...)
	w.mu.Unlock()
	w.signal <- struct{}{}
}

func (w *witness) Has(name string) bool { return w.registry.Has(name) }

func (w *witness) Run(ctx context.Context, name string, a *tasker.Attempt) (json.RawMessage, *tasker.Failure) {
	w.committed(a.StepID, a.Number, tasker.StepInProgress)
	w.mu.Lock()
	w.attempts++
	w.mu.Unlock()
	return w.registry.Run(ctx, name, a)
}

func setup(t *testing.T, yaml string) (*orchestrator.Orchestrator, *witness, *store.Store) {
	t.Helper()
	pool := testenv.Pool(t, testenv.Database(t))
	s := store.New(pool)
	tmpl, err := template.Parse("test.yaml", []byte(yaml), template.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.RegisterTemplate(t.Context(), tmpl, template.Checksum(tmpl)); err != nil {
		t.Fatal(err)
	}
	id, err := s.RegisterWorker(t.Context(), "test", "test", time.Hour, map[string]any{"handlers": []string{}})
	if err != nil {
		t.Fatal(err)
	}
	w := &witness{t: t, pool: pool, registry: handler.NewRegistry(), signal: make(chan struct{}, 100)}
	o := orchestrator.New(orchestrator.Config{
		Store: s, Worker: id, Handlers: w, Dispatcher: w, Logger: slog.New(slog.DiscardHandler), Tuning: orchestrator.Tuning{ParkAfter: time.Minute},
	})
	t.Cleanup(o.Close)
	return o, w, s
}

func enqueue(t *testing.T, s *store.Store, name string) int64 {
	t.Helper()
	id, err := s.Enqueue(t.Context(), &store.NewTask{Namespace: "test", Name: name, Context: json.RawMessage(`{}`)})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// Guarantee 6.
func TestNothingIsActedOnBeforeItsAttemptIsCommitted(t *testing.T) {
	t.Parallel()
	o, w, s := setup(t, `
name: seams
namespace_name: test
step_templates:
  - {name: ruby, handler_class: Anything}
  - {name: go, handler: tasker.fail, handler_config: {times: 2}, retry: {base_seconds: 0.01}}
  - {name: after, handler_class: Anything, depends_on_steps: [go]}`)
	task := enqueue(t, s, "seams")
	ended := make(chan error, 1)
	go func() { ended <- o.Run(t.Context(), task, 0) }()
	for range 2 {
		<-w.signal
		w.mu.Lock()
		d := w.pushed[len(w.pushed)-1]
		w.mu.Unlock()
		if _, err := w.pool.Exec(t.Context(), `SELECT tasker.report_results(jsonb_build_array(jsonb_build_object('step_id', $1::bigint, 'attempt', $2::int, 'outcome', 'success',
			'secret', tasker.start_attempt($1, $2, NULL, $3) ->> 'secret')))`, d.StepID, d.Attempt, d.Ticket); err != nil {
			t.Fatal(err)
		}
		o.Rung([]int64{d.StepID})
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if w.attempts != 3 {
		t.Errorf("the Go step ran %d times, want 3", w.attempts)
	}
	got, err := s.Task(t.Context(), task)
	if err != nil || got.State != tasker.TaskComplete {
		t.Errorf("the task ended as %+v, %v", got, err)
	}
}
