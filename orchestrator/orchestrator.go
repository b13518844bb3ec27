// Package orchestrator runs tasks: it loads a task's steps once, decides in
// memory what may start, has each decision written, and acts on it only then.
//
// Who decides. What may start is dag's to say; what a finished attempt or a
// drained task means is finalizer's. This package carries it out. Each task has
// one loop, and a loop is one goroutine: it owns all it knows about its task,
// so there are no locks inside it. Others put mail into its mailbox.
//
// What is trusted. Postgres, and nothing else. A loop assumes that its view is
// right and writes with the state and attempt that it saw; when the database
// refuses (the task was taken over, cancelled, or a report came in between) the
// loop forgets its view and reads the task again. A notification only says
// where to look.
//
// What happens when things break. A loop whose worker is declared dead stops
// without another word; the tasks are taken over with all that was committed,
// and attempts of Go handlers that were out count as lost. When Postgres is
// away, writes wait for it. When Redis is away, attempts stay claimed and the
// dispatcher pushes them when it is back.
//
// First commit, then act: no handler runs and nothing leaves for Redis before
// the attempt is committed.
package orchestrator

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/dag"
	"github.com/taskerhq/tasker/store"
)

// Handlers runs attempts of Go steps. Steps whose handler it doesn't have are
// left to workers that do.
type Handlers interface {
	Has(name string) bool
	Run(ctx context.Context, name string, attempt *tasker.Attempt) (json.RawMessage, *tasker.Failure)
}

// Dispatcher brings attempts to Sidekiq. Push does not block and does not fail:
// what can't be pushed now is pushed later.
type Dispatcher interface {
	Push(dispatches []tasker.Dispatch)
}

// Config is what an Orchestrator needs. All fields but MaxTasks, Tuning, Tracer and Wrote must be set.
type Config struct {
	Store      *store.Store
	Worker     int64 // its number in tasker.workers
	Handlers   Handlers
	Dispatcher Dispatcher
	MaxTasks   int // places: how many tasks it may run at once; 0: always scarce
	Logger     *slog.Logger
	Tuning     // at the start; Tune changes it

	Tracer Tracer                              // nil: nothing is traced
	Wrote  func(units int, took time.Duration) // is told of each transaction that loops wrote together; nil: nobody is
}

// Orchestrator runs the loops of one worker.
type Orchestrator struct {
	Config
	tuned   atomic.Pointer[Tuning]
	ahead   atomic.Int64 // by how much the database's clock is before ours, in nanoseconds
	writer  *store.Writer
	claimer *store.Claimer
	keeper  *store.Keeper

	ticketKey [32]byte // what tickets are made of: it never leaves this process

	ctx      context.Context // ends when the worker may not write any more
	abandon  context.CancelCauseFunc
	handlers context.Context // ends when handlers have to stop
	stop     context.CancelFunc
	draining chan struct{} // closed: take nothing new, hand back what is held

	mu          sync.Mutex
	loops       map[int64]*loop
	awaiting    map[int64]bool // steps whose attempts are out at Sidekiq
	drained     bool
	templates   sync.Map    // template id → *compiled
	recent      []*compiled // the templates of the last claims, without duplicates; the latest first
	gates       atomic.Pointer[store.KnownGates]
	gatekeeping chan struct{} // holds one token while the line may move
	others      elsewhere
	inbox       chan []int64
	orphans     map[int64]int // of CatchUp: owned tasks without a loop, and their epochs
	place       atomic.Pointer[place]
	alone       sync.WaitGroup // visits that Enqueued began
	finished    sync.WaitGroup
}

// New returns an orchestrator. It must be closed.
func New(c Config) *Orchestrator {
	o := &Orchestrator{
		Config:   c,
		draining: make(chan struct{}),
		loops:    map[int64]*loop{},
		awaiting: map[int64]bool{},
		inbox:    make(chan []int64, 1024), // a bound on memory; CatchUp finds what doesn't fit
		others:   elsewhere{known: map[string]answer{}, bells: map[int64]bool{}},

		gatekeeping: make(chan struct{}, 1),
	}
	_, _ = rand.Read(o.ticketKey[:])   // never fails: the program ends where the system has no randomness
	o.gates.Store(&store.KnownGates{}) // if there are any, the first claim is refused
	o.Tune(c.Tuning)
	o.ctx, o.abandon = context.WithCancelCause(context.Background())
	o.handlers, o.stop = context.WithCancel(o.ctx)
	o.writer = c.Store.NewWriter(o.ctx, c.Worker)
	o.claimer = c.Store.NewClaimer(o.ctx, c.Worker)
	o.claimer.Opening = o.opening
	o.claimer.TicketKey = o.ticketKey[:]
	o.writer.Wrote = c.Wrote
	o.claimer.Traced = c.Tracer != nil
	o.keeper = c.Store.NewKeeper(o.ctx, c.Worker)
	o.finished.Go(o.readReports)
	o.finished.Go(o.keepGates)
	return o
}

// Run takes the task if it is free and runs its loop until the task is
// finished, waits for something that is far away, or the worker drains. job is
// the River job that asks for it.
func (o *Orchestrator) Run(ctx context.Context, task, job int64) error {
	o.mu.Lock()
	if there := o.loops[task]; there != nil {
		// A second job for a task that this worker holds, or the same one again. It
		// may be the wake-up for a report that came just after that loop parked: have
		// it look once more when it is done. And it may be what was rescued from this
		// worker, which has been declared dead and doesn't know: so its fate is that
		// of the first.
		//
		// Or it is the job whose visit Enqueued began. Who gives a task up for a while
		// relies on a job that nobody has fetched yet, and that may have been this one:
		// unless this loop has held the task since, and relied on nothing, it has to be
		// looked at once more, too.
		if job != 0 && there.visit.awaits == job {
			there.visit.awaits, there.awaited = 0, true
		} else {
			there.again = true
		}
		o.mu.Unlock()
		select {
		case <-there.visit.done:
			return there.visit.fate
		case <-o.ctx.Done():
			return o.explain(task, o.ctx.Err(), false)
		}
	}
	v, l := o.begin(task, 0)
	o.mu.Unlock()
	return o.visit(v, l)
}

// begin makes a visit of a task that has no loop, and its loop. o.mu is held.
func (o *Orchestrator) begin(task, awaits int64) (*visit, *loop) {
	v := &visit{done: make(chan struct{}), awaits: awaits}
	l := newLoop(o, task, v)
	o.loops[task] = l
	return v, l
}

// visit runs the loop, and others after it for as long as it is asked to.
func (o *Orchestrator) visit(v *visit, l *loop) error {
	defer close(v.done)
	for task := l.id; ; {
		err := l.runSafely()
		o.mu.Lock()
		// A loop that lost its task leaves it to whoever has it.
		served := err == nil || errors.Is(err, store.ErrStale) && !errors.Is(err, store.ErrBusy)
		again := l.again || l.awaited && (l.relies || err != nil)
		if !again || !served || o.ctx.Err() != nil {
			delete(o.loops, task)
			v.fate = o.explain(task, err, served)
			o.mu.Unlock()
			return v.fate
		}
		l = newLoop(o, task, v)
		o.loops[task] = l
		o.mu.Unlock()
	}
}

// visit is what runs loops over a task, one after the other, and what came of it.
type visit struct {
	done   chan struct{}
	fate   error // once done
	awaits int64 // the River job that it began for, and that has not come; 0: none. Guarded by o.mu
}

// ErrAbandoned is what Run returns when the task could not be served: the worker
// had to drop everything, or somebody's open transaction holds the task. It has
// to be looked at again.
var ErrAbandoned = errors.New("the task was not served")

// NotDueError is what Run returns for a task whose run_at has not come.
type NotDueError = store.NotDueError

// explain says what the job's fate is. Only a demand that was served may end
// its job: the claim was answered, and the task is finished, parked, or
// somebody else's.
func (o *Orchestrator) explain(task int64, err error, served bool) error {
	if errors.Is(err, store.ErrWorkerDead) {
		o.Abandon(err)
	}
	switch {
	case o.ctx.Err() != nil || errors.Is(err, store.ErrBusy):
		return fmt.Errorf("task %d: %w", task, ErrAbandoned)
	case served:
		return nil
	}
	return fmt.Errorf("task %d: %w", task, err)
}

// Drain makes every loop hand its task back as soon as its running Go attempts
// have ended. When ctx ends first, their contexts end too, and attempts that do
// not return a result then are given up as lost, at no cost to their limit.
func (o *Orchestrator) Drain(ctx context.Context) {
	o.mu.Lock()
	if !o.drained {
		o.drained = true
		close(o.draining)
	}
	o.mu.Unlock()
	context.AfterFunc(ctx, o.stop)
}

// Abandon stops every loop where it is: the worker may not write any more.
func (o *Orchestrator) Abandon(cause error) { o.abandon(cause) }

// Abandoned is closed when the loops were told to stop where they are.
func (o *Orchestrator) Abandoned() <-chan struct{} { return o.ctx.Done() }

// Cause says why the loops were told to stop.
func (o *Orchestrator) Cause() error { return context.Cause(o.ctx) }

// Close ends the orchestrator. No Run may be under way.
func (o *Orchestrator) Close() {
	o.abandon(context.Canceled)
	o.alone.Wait()
	o.finished.Wait()
}

// SetClock says what time it is in the database, whose clock is the one that
// counts where a date comes from elsewhere.
func (o *Orchestrator) SetClock(now time.Time) { o.ahead.Store(int64(time.Until(now))) }

// Now is the time by the database's clock, as far as is known.
func (o *Orchestrator) Now() time.Time { return o.databaseTime(time.Now()) }

// databaseTime is the given time of this process by the database's clock.
func (o *Orchestrator) databaseTime(at time.Time) time.Time {
	return at.Add(time.Duration(o.ahead.Load()))
}

// Held is how many tasks this worker runs at the moment.
func (o *Orchestrator) Held() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.loops)
}

// patience is how long a loop keeps a task that waits.
func (o *Orchestrator) patience() time.Duration {
	t := o.tuning()
	if o.Held() <= o.MaxTasks-o.MaxTasks/4-1 {
		return t.HoldFor
	}
	return t.ParkAfter
}

// compiled is a template with its graph.
type compiled struct {
	*tasker.Template
	id      int64
	graph   *dag.Graph
	roots   []int  // the steps without dependencies
	foreign []bool // per step: a Go step whose handler this worker doesn't have; nil when it has all
}

func (o *Orchestrator) template(id int64) (*compiled, error) {
	if t, ok := o.templates.Load(id); ok {
		return t.(*compiled), nil
	}
	t, err := store.Patiently(o.ctx, func() (*tasker.Template, error) { return o.Store.UseTemplate(o.ctx, id) })
	if err != nil {
		return nil, err
	}
	graph, err := dag.New(t.Steps)
	if err != nil {
		return nil, fmt.Errorf("compile template %s: %w", t.FullName(), err)
	}
	c := &compiled{Template: t, id: id, graph: graph}
	for i := range t.Steps {
		if len(graph.Dependencies(i)) == 0 {
			c.roots = append(c.roots, i)
		}
		if h := t.Steps[i].Handler; h != "" && !o.Handlers.Has(h) {
			if c.foreign == nil {
				c.foreign = make([]bool, len(t.Steps))
			}
			c.foreign[i] = true
		}
	}
	o.templates.Store(id, c) // immutable: the task that led here has used it
	return c, nil
}

// opening lists the templates whose tasks' first attempts are claimed together
// with the task: those that were used last, where nothing is left to decide.
// That saves a task its first write.
func (o *Orchestrator) opening() (templates []int64, gates int64) {
	known := o.gates.Load()
	o.mu.Lock()
	defer o.mu.Unlock()
	templates = make([]int64, 0, len(o.recent))
	if o.drained {
		return templates, known.Version
	}
	for _, c := range o.recent {
		gated := func(i int) bool { return len(gatesOf(known, c.Template, &c.Steps[i])) > 0 }
		if c.foreign == nil && len(c.roots) <= c.MaxParallelSteps && !slices.ContainsFunc(c.roots, gated) {
			templates = append(templates, c.id)
		}
	}
	return templates, known.Version
}

// used remembers that a task of the template was claimed.
func (o *Orchestrator) used(c *compiled) {
	const most = 16 // the database compares each claim with all of them
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.recent) > 0 && o.recent[0] == c {
		return
	}
	o.recent = slices.DeleteFunc(o.recent, func(r *compiled) bool { return r == c })
	o.recent = slices.Insert(o.recent[:min(len(o.recent), most-1)], 0, c)
}

func draw() float64 { return mathrand.Float64() }
