package worker_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/store"
)

// scene is a task in the middle of its life: its first step is complete, its
// second at Sidekiq, its third stands in line at a limit that has room, its fourth runs
// in the worker that owns the task. A second worker is alive, and the first may be
// declared dead.
type scene struct {
	task         int64
	steps        map[string]int64
	owner, other int64 // workers
	epoch        int
	gates        int64 // the version of the limits that the owner knows
	gate         int32 // the limit
}

// session is who does something there.
type session struct {
	name  string
	pool  *pgxpool.Pool
	store *store.Store
}

// verb is something that is done to a scene, by one transaction, or by a worker
// that tries it again until it is done or refused.
type verb struct {
	name string
	do   func(ctx context.Context, s *session, x *scene) error
	loop bool // the owner's loop does it, which does one thing at a time
}

func report(outcome string) func(context.Context, *session, *scene) error {
	return func(ctx context.Context, s *session, x *scene) error {
		_, err := s.pool.Exec(ctx, `SELECT standin.report_results(jsonb_build_array(jsonb_build_object('step_id', $1::bigint, 'attempt', 1, 'outcome', $2::text,
			'failure', jsonb_build_object('class', 'X', 'message', 'fails'))))`, x.steps["ruby"], outcome)
		return err
	}
}

func statement(sql string, step string) func(context.Context, *session, *scene) error {
	return func(ctx context.Context, s *session, x *scene) error {
		id := x.task
		if step != "" {
			id = x.steps[step]
		}
		_, err := s.pool.Exec(ctx, sql, id)
		return err
	}
}

// write is one of the loop that owns the task.
func write(name string, unit func(x *scene) *store.Unit) verb {
	return verb{name, func(ctx context.Context, s *session, x *scene) error {
		u := unit(x)
		u.Task, u.Epoch, u.Gates = x.task, x.epoch, x.gates
		return s.store.NewWriter(ctx, x.owner).Write(ctx, u)
	}, true}
}

var interleaved = []verb{
	{"report success", report("success"), false},
	{"report failure", report("failure"), false},
	{"report loss", report("lost"), false},
	{"start the attempt", statement(`SELECT standin.start_attempt($1, 1)`, "ruby"), false},
	write("finish a Go step and claim the next", func(x *scene) *store.Unit {
		return &store.Unit{Steps: []store.StepWrite{
			{Step: x.steps["go"], Was: tasker.StepInProgress, WasAttempt: 1, State: tasker.StepComplete, Attempt: 1, Result: []byte(`{}`)},
			{Step: x.steps["next"], Was: tasker.StepPending, State: tasker.StepEnqueued, Attempt: 1, Queue: "default"},
		}}
	}),
	write("claim the limited step", func(x *scene) *store.Unit {
		return &store.Unit{Steps: []store.StepWrite{
			{Step: x.steps["limited"], Was: tasker.StepPending, State: tasker.StepInProgress, Attempt: 1, Gates: []int32{x.gate}}}}
	}),
	write("park", func(x *scene) *store.Unit {
		return &store.Unit{Release: true, Parked: []int64{x.steps["ruby"]}}
	}),
	write("give up for a while", func(x *scene) *store.Unit {
		return &store.Unit{Release: true, Rerun: new(time.Second)}
	}),
	{"claim by another worker", func(ctx context.Context, s *session, x *scene) error {
		_, err := s.store.NewClaimer(ctx, x.other).Claim(ctx, x.task)
		return err
	}, false},
	{"reap the owner", func(ctx context.Context, s *session, _ *scene) error { _, err := s.store.ReapWorker(ctx); return err }, false},
	{"sweep", func(ctx context.Context, s *session, _ *scene) error { _, err := s.store.Sweep(ctx); return err }, false},
	{"read the clocks", func(ctx context.Context, s *session, _ *scene) error {
		_, _, err := s.store.ReadClocks(ctx, 10*time.Second, time.Hour)
		return err
	}, false},
	{"take unstarted attempts", func(ctx context.Context, s *session, _ *scene) error {
		_, err := s.store.TakeUnstarted(ctx, time.Microsecond, 100)
		return err
	}, false},
	{"admit who waits", func(ctx context.Context, s *session, _ *scene) error { _, err := s.store.AdmitWaiters(ctx); return err }, false},
	{"cancel the task", statement(`SELECT tasker.cancel_task($1, 'ada')`, ""), false},
	{"pause the task", statement(`SELECT tasker.pause_task($1, 'ada')`, ""), false},
	{"skip the Ruby step", statement(`SELECT tasker.skip_step($1, 'ada')`, "ruby"), false},
	{"resolve the Go step", statement(`SELECT tasker.resolve_step($1, '7', 'ada')`, "go"), false},
	{"skip the limited step", statement(`SELECT tasker.skip_step($1, 'ada')`, "limited"), false},
	{"change the priority", statement(`SELECT tasker.set_task_priority($1, 1::smallint, 'ada')`, ""), false},
	{"change a limit", func(ctx context.Context, s *session, _ *scene) error {
		return s.store.SetLimit(ctx, store.GateKey{Scope: "key", Name: "bank"}, store.Limit{MaxAttempts: new(2)}, store.Operator{})
	}, false},
}

const scenery = `
name: scene
namespace_name: test
step_templates:
  - {name: first, handler: tasker.echo}
  - {name: ruby, handler_class: Work, depends_on_step: first, retry: {base_seconds: 1}}
  - {name: limited, handler: tasker.echo, depends_on_step: first, limit_key: bank}
  - {name: go, handler: tasker.echo, depends_on_step: first}
  - {name: next, handler_class: Work, depends_on_step: go}
  - {name: last, handler: tasker.echo, depends_on_steps: [ruby, limited, next]}`

// set sets the scene.
func (b *bundle) set() *scene {
	b.Helper()
	ctx := b.Context()
	x := &scene{task: b.enqueue("scene", `{}`), steps: map[string]int64{}}
	var err error
	x.owner, err = b.store.RegisterWorker(ctx, "owner", fmt.Sprint("owner ", x.task), 10*time.Second, nil)
	b.must(err)
	x.other, err = b.store.RegisterWorker(ctx, "other", fmt.Sprint("other ", x.task), time.Hour, nil)
	b.must(err)
	claimed, err := b.store.NewClaimer(ctx, x.owner).Claim(ctx, x.task)
	b.must(err)
	x.epoch, x.gates = claimed.Epoch, int64(b.number(`SELECT sum(version) FROM tasker.gates`))
	x.gate = int32(b.number(`SELECT gate_id FROM tasker.gates`))
	steps, err := b.store.StepsOf(ctx, x.task)
	b.must(err)
	for _, s := range steps {
		x.steps[s.Name] = s.StepID
	}
	write := func(steps ...store.StepWrite) {
		b.Helper()
		b.must(b.store.NewWriter(ctx, x.owner).Write(ctx, &store.Unit{Task: x.task, Epoch: x.epoch, Gates: x.gates, Steps: steps}))
	}
	if !claimed.Begun {
		write(store.StepWrite{Step: x.steps["first"], Was: tasker.StepPending, State: tasker.StepInProgress, Attempt: 1})
	}
	write(
		store.StepWrite{Step: x.steps["first"], Was: tasker.StepInProgress, WasAttempt: 1, State: tasker.StepComplete, Attempt: 1, Result: []byte(`{}`)},
		store.StepWrite{Step: x.steps["ruby"], Was: tasker.StepPending, State: tasker.StepEnqueued, Attempt: 1, Queue: "default"},
		store.StepWrite{Step: x.steps["go"], Was: tasker.StepPending, State: tasker.StepInProgress, Attempt: 1},
	)
	b.exec(`INSERT INTO tasker.gate_waiters (step_id, gate_id, task_id, rank) VALUES ($1, $2, $3, now())`, x.steps["limited"], x.gate, x.task)
	// Nothing but its owner and its attempts would bring the task back; and the
	// owner has been silent.
	b.exec(`UPDATE tasker.river_job SET state = 'completed', finalized_at = now() WHERE (args ->> 'task_id')::bigint = $1`, x.task)
	b.exec(`UPDATE tasker.workers SET last_seen_at = now() - interval '1 minute' WHERE worker_id = $1`, x.owner)
	return x
}

// as opens a session under a name.
func (b *bundle) as(name string) *session {
	b.Helper()
	config, err := pgxpool.ParseConfig(b.url)
	b.must(err)
	config.ConnConfig.RuntimeParams["application_name"] = name
	config.MaxConns = 2
	pool, err := pgxpool.NewWithConfig(b.Context(), config)
	b.must(err)
	b.Cleanup(pool.Close)
	return &session{name, pool, store.New(pool)}
}

// noDeadlocks ends the sessions, so that what they count is known, and looks. A
// worker would have tried again, and nobody would know.
func (b *bundle) noDeadlocks(sessions ...*session) {
	b.Helper()
	for _, s := range sessions {
		s.pool.Close()
	}
	b.until("the sessions have ended", func() bool {
		return b.number(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`) <= int(b.pool.Stat().TotalConns())-1
	})
	b.want("0", `SELECT deadlocks::text FROM pg_stat_database WHERE datname = current_database()`)
}

// expected says that an error is an answer, and not a mishap.
func expected(err error) bool {
	var code *pgconn.PgError
	var refused *store.RefusedError
	switch {
	case err == nil, errors.Is(err, store.ErrStale), errors.Is(err, store.ErrWorkerDead), errors.Is(err, store.ErrBusy):
		return true
	case errors.As(err, &code):
		return strings.HasPrefix(code.Code, "TK") || code.Code == "55P03" // refused; or somebody has held it for too long
	}
	return errors.As(err, &refused) && !strings.Contains(err.Error(), "deadlock")
}

// after checks a scene when all who did something there are done, and clears it
// away.
func (b *bundle) after(x *scene, what string) {
	b.Helper()
	// A task that somebody held while its owner was declared dead is for the next beat
	// of a worker, and none beats here; nobody is worried until a minute is over.
	b.exec(`UPDATE tasker.workers SET last_seen_at = now() WHERE worker_id = $1 AND state = 'dead'`, x.owner)
	if n := b.number(`SELECT count(*) FROM tasker.gate_waiters w JOIN tasker.tasks t USING (task_id)
		WHERE w.task_id = $1 AND w.admitted_until IS NOT NULL AND t.owner IS NULL AND t.paused_at IS NULL AND t.state = 'in_progress'
		  AND NOT EXISTS (SELECT FROM tasker.river_job j WHERE (j.args ->> 'task_id')::bigint = w.task_id AND j.state = 'available')`, x.task); n > 0 {
		b.Errorf("after %s: a place is kept for a task that nobody looks at", what)
	}
	// The line would bring the task back, too, whatever else was forgotten.
	b.exec(`DELETE FROM tasker.gate_waiters WHERE task_id = $1`, x.task)
	b.promised("after "+what+": ", store.ExamineOptions{Task: &x.task})
	b.exec(`SELECT tasker.cancel_task(task_id) FROM tasker.tasks WHERE task_id = $1 AND state IN ('pending', 'in_progress', 'error')`, x.task)
	b.exec(`DELETE FROM tasker.river_job WHERE (args ->> 'task_id')::bigint = $1`, x.task)
	b.exec(`DELETE FROM tasker.workers WHERE worker_id IN ($1, $2)`, x.owner, x.other)
}

// Guarantees 3 to 7 under every order of two: one is stopped after each of its
// writes in turn, and the other does all of its work meanwhile, or waits for the
// first.
func TestTwoAtATimeInEveryOrder(t *testing.T) {
	const shares = 4
	for share := range shares {
		t.Run(fmt.Sprint(share), func(t *testing.T) {
			b := setup(t)
			b.exec(halts)
			b.register(scenery)
			b.limit("key", "bank", store.Limit{MaxAttempts: new(1)})
			halting, passing := b.as("tasker halts"), b.as("passes")
			runs := 0
			for i, first := range interleaved {
				if i%shares != share {
					continue
				}
				// Which places does it come by?
				b.exec(`TRUNCATE halts.seen`)
				x := b.set()
				if err := first.do(t.Context(), halting, x); !expected(err) {
					t.Fatalf("%s: %v", first.name, err)
				}
				b.after(x, first.name)
				for _, place := range b.seen() {
					for _, second := range interleaved {
						if first.loop && second.loop {
							continue
						}
						b.interleave(halting, place, first, follower{passing, second})
						runs++
					}
				}
			}
			b.noDeadlocks(halting, passing)
			t.Logf("%d orders", runs)
		})
	}
}

func (b *bundle) seen() []string {
	b.Helper()
	rows, err := b.pool.Query(b.Context(), `SELECT place FROM halts.seen GROUP BY place ORDER BY place COLLATE "C"`)
	b.must(err)
	places, err := pgx.CollectRows(rows, pgx.RowTo[string])
	b.must(err)
	return places
}

// Three sessions: one is stopped after one of its writes, and two others come one
// after the other. Not all orders of three, which are 17,000: a few of each place, or
// a hundred where TASKER_INTERLEAVINGS asks for many.
func TestThreeAtATime(t *testing.T) {
	b := setup(t)
	b.exec(halts)
	b.register(scenery)
	b.limit("key", "bank", store.Limit{MaxAttempts: new(1)})
	halting, passing, following := b.as("tasker halts"), b.as("passes"), b.as("follows")
	each := min(interleavings(t, 3), 100)
	random := rand.New(rand.NewPCG(7, 7))
	runs := 0
	for _, first := range interleaved {
		b.exec(`TRUNCATE halts.seen`)
		x := b.set()
		if err := first.do(t.Context(), halting, x); !expected(err) {
			t.Fatalf("%s: %v", first.name, err)
		}
		b.after(x, first.name)
		for _, place := range b.seen() {
			for range each {
				second, third := interleaved[random.IntN(len(interleaved))], interleaved[random.IntN(len(interleaved))]
				if first.loop && (second.loop || third.loop) || second.loop && third.loop {
					continue // a task has one loop
				}
				b.interleave(halting, place, first, follower{passing, second}, follower{following, third})
				runs++
			}
		}
	}
	b.noDeadlocks(halting, passing, following)
	t.Logf("%d orders", runs)
}

// follower is one who comes while another is stopped.
type follower struct {
	session *session
	verb    verb
}

func (b *bundle) interleave(halting *session, place string, first verb, followers ...follower) {
	b.Helper()
	x := b.set()
	release := b.arm(place)
	halted := make(chan error, 1)
	names, ends := []string{first.name}, []chan error{halted}
	go func() { halted <- first.do(b.Context(), halting, x) }()
	b.waits(`SELECT count(*) FROM pg_stat_activity a JOIN pg_locks l USING (pid) WHERE a.application_name = 'tasker halts'
		AND a.datname = current_database() AND l.locktype = 'advisory' AND l.objid = 77 AND NOT l.granted`, halted)
	what := fmt.Sprintf("%q, stopped after %s", first.name, place)
	for _, f := range followers {
		end := make(chan error, 1)
		names, ends = append(names, f.verb.name), append(ends, end)
		what += fmt.Sprintf(", and %q", f.verb.name)
		go func() { end <- f.verb.do(b.Context(), f.session, x) }()
		// It is through, or waits for one before it.
		b.waits(`SELECT count(*) FROM pg_stat_activity WHERE application_name = '`+f.session.name+`' AND datname = current_database() AND wait_event_type = 'Lock'`, end)
	}
	release()
	for i, end := range ends {
		if err := <-end; !expected(err) {
			b.Errorf("%s: %s: %v", what, names[i], err)
		}
	}
	b.after(x, what)
}

// waits returns when the query counts somebody, or when it has ended: how, is
// still to be received.
func (b *bundle) waits(sql string, ended chan error) {
	b.Helper()
	for {
		select {
		case err := <-ended:
			ended <- err
			return
		case <-time.After(500 * time.Microsecond):
			if b.number(sql) > 0 {
				return
			}
		}
	}
}

// No deadlock, and nothing broken, when several do what they like to few tasks.
// TASKER_INTERLEAVINGS sets how often; the default is for every day.
func TestManyAtATimeDoNotDeadlock(t *testing.T) {
	b := setup(t)
	b.register(scenery)
	b.limit("key", "bank", store.Limit{MaxAttempts: new(1)})
	const scenes, crowd = 25, 6
	runs := interleavings(t, 2000)
	random := rand.New(rand.NewPCG(1, 2))
	sessions := make([]*session, crowd)
	for i := range sessions {
		sessions[i] = b.as(fmt.Sprint("session ", i))
	}
	for done := 0; done < runs; {
		xs := make([]*scene, scenes)
		for i := range xs {
			xs[i] = b.set()
		}
		// Everyone's list is drawn beforehand: only the timing differs.
		var all sync.WaitGroup
		for _, s := range sessions {
			order := random.Perm(len(interleaved))
			all.Go(func() {
				for _, x := range xs {
					for _, v := range order[:3] {
						if err := interleaved[v].do(b.Context(), s, x); !expected(err) {
							b.Errorf("%s: %v", interleaved[v].name, err)
						}
					}
					order = append(order[3:], order[:3]...)
				}
			})
		}
		all.Wait()
		done += scenes * crowd * 3
		for _, x := range xs {
			b.after(x, "many at a time")
		}
	}
	b.noDeadlocks(sessions...)
	t.Logf("%d runs", runs)
}

// interleavings is how many runs TASKER_INTERLEAVINGS asks for.
func interleavings(t *testing.T, otherwise int) int {
	t.Helper()
	text := os.Getenv("TASKER_INTERLEAVINGS")
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("TASKER_INTERLEAVINGS is a number, not %q", text)
	}
	return n
}
