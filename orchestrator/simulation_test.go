package orchestrator

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/dag"
	"github.com/taskerhq/tasker/finalizer"
	"github.com/taskerhq/tasker/store"
)

// A simulation runs the loop itself, its read, see, decide and forget, over a
// database that is a slice and a clock that is synctest's. What the world does
// comes from a script (how each attempt of each step ends) and from dice: the
// order in which attempts end, when their reports reach the loop, when the
// worker dies, what an operator does. So a case costs a fraction of a
// millisecond, and tens of thousands of them run where real servers allow a few.
//
// The database here refuses what tasker.write_batch refuses, and fails the test
// where the loop asks for something that must never happen.

// hundreds runs a property n times as often as -rapid.checks says, which is 100
// unless somebody asks for more, as `make test/long` does.
func hundreds(t *testing.T, n int, property func(*rapid.T)) {
	t.Helper()
	for range n {
		rapid.Check(t, property)
	}
}

// ending is how one attempt ends, as its script says.
type ending int

const (
	success ending = iota
	failure
	permanent
	lost // also with the next attempt, and the next: a step that kills its process
)

// scenario is a template with the script of its steps.
type scenario struct {
	template *tasker.Template
	graph    *dag.Graph
	script   [][]ending // per step, the attempts that count; the last one repeats
}

func (s *scenario) ends(i, used int) ending {
	return s.script[i][min(used, len(s.script[i]))-1]
}

// outcome works out how step i must end, given that all it depends on is
// satisfied: the state, and with which attempt.
func (s *scenario) outcome(i int) (tasker.StepState, int) {
	spec := &s.template.Steps[i]
	failed := tasker.StepError
	if spec.Skippable {
		failed = tasker.StepSkipped
	}
	for used := 1; ; used++ {
		switch e := s.ends(i, used); {
		case e == success:
			return tasker.StepComplete, used
		case e != failure || used == spec.AttemptLimit():
			return failed, used
		}
	}
}

// want is what the task must come to, whatever the order: states and values.
func (s *scenario) want() (states []tasker.StepState, values []uint64) {
	states, values = make([]tasker.StepState, s.graph.Len()), make([]uint64, s.graph.Len())
	for _, i := range s.graph.TopologicalOrder() {
		states[i] = tasker.StepPending
		if slices.ContainsFunc(s.graph.Dependencies(i), func(d int) bool { return !mayFollow(states[d]) }) {
			continue
		}
		var used int
		if states[i], used = s.outcome(i); states[i] == tasker.StepComplete {
			values[i] = s.value(i, used, values)
		}
	}
	return states, values
}

// mayFollow is guarantee 4 in a test's own words: what depends on a step may
// start when the step is in one of these states.
func mayFollow(s tasker.StepState) bool {
	return s == tasker.StepComplete || s == tasker.StepSkipped || s == tasker.StepResolvedManually
}

// value is the result of a step: a number that any other attempt, and any other
// input, would make another.
func (s *scenario) value(i, used int, values []uint64) uint64 {
	h := fnv.New64a()
	_, _ = fmt.Fprint(h, i, used) // a hash takes everything
	for _, d := range s.graph.Dependencies(i) {
		_, _ = fmt.Fprint(h, " ", d, values[d])
	}
	return h.Sum64()
}

func anyScenario(t *rapid.T, most int) *scenario {
	n := rapid.IntRange(1, most).Draw(t, "steps")
	s := &scenario{template: &tasker.Template{
		Namespace: "test", Name: "simulated", Version: "1.0.0",
		MaxParallelSteps: rapid.IntRange(1, 4).Draw(t, "max parallel"),
		Steps:            make([]tasker.StepTemplate, n),
	}}
	backoffs := []tasker.Backoff{tasker.BackoffNone, tasker.BackoffFixed, tasker.BackoffExponential}
	for i := range n {
		step := &s.template.Steps[i]
		kind := rapid.IntRange(0, 127).Draw(t, "kind")
		*step = tasker.StepTemplate{
			Name: "s" + strconv.Itoa(i), Retryable: kind%8 != 0, RetryLimit: 1 + kind/8%4, Skippable: kind%16 == 1,
			Retry: tasker.RetryPolicy{Backoff: backoffs[kind%3], Base: 1.5, Cap: 20},
		}
		if kind < 64 {
			step.Handler = "simulated"
		} else {
			step.HandlerClass = "Simulated"
		}
		if i > 0 {
			for _, d := range rapid.SliceOfN(rapid.IntRange(0, i-1), 0, 3).Draw(t, "after") {
				step.DependsOn = append(step.DependsOn, "s"+strconv.Itoa(d))
			}
		}
		s.script = append(s.script, rapid.SliceOfN(rapid.SampledFrom([]ending{
			success, success, success, success, success, failure, failure, failure, permanent, lost,
		}), 1, 4).Draw(t, "ends"))
	}
	var err error
	if s.graph, err = dag.New(s.template.Steps); err != nil {
		t.Fatal(err)
	}
	return s
}

// row is a step in the simulated database, with its dispatch.
type row struct {
	state            tasker.StepState
	attempts, losses int
	due              time.Time
	value            uint64
	dispatched       bool            // a row in dispatches
	awaited          bool            // its report rings for the loop; else it inserts a job
	failure          json.RawMessage // reported, not yet decided on
}

// world is one run of a scenario.
type world struct {
	*scenario
	dice     *rand.Rand
	mischief bool // an operator cancels and skips steps

	o      *Orchestrator
	rows   []row
	state  tasker.TaskState
	epoch  int
	loop   *loop      // of the worker that owns the task; nil: nobody does
	job    *time.Time // when a River job for the task is due
	crises int        // how many more attempts may be lost by chance

	running     []attempt // Go attempts that run in the worker
	undelivered []letter  // committed, and the loop has not been told
	err         error
}

type attempt struct{ position, number int }

func (w *world) fault(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf(format, args...)
	}
}

var errRefused = errors.New("refused")

// run takes the task to its end. It returns what went wrong.
func (w *world) run() error {
	w.o = &Orchestrator{
		Config:   Config{Logger: slog.New(slog.DiscardHandler)},
		draining: make(chan struct{}), loops: map[int64]*loop{}, awaiting: map[int64]bool{},
	}
	w.o.gates.Store(&store.KnownGates{})
	w.o.Tune(Tuning{ParkAfter: 2 * time.Second})
	w.rows = make([]row, w.graph.Len())
	for i := range w.rows {
		w.rows[i].state = tasker.StepPending
	}
	w.state, w.crises = tasker.TaskPending, finalizer.MaxLosses
	w.job = new(time.Now())
	for rounds := 0; !w.state.Finished() && w.err == nil; rounds++ {
		if rounds > 400*w.graph.Len()+400 {
			return errors.New("the task doesn't end")
		}
		if w.loop != nil {
			w.turn()
		}
		if !w.state.Finished() && w.err == nil {
			w.happen()
		}
	}
	return w.err
}

// turn is one round of loop.run.
func (w *world) turn() {
	l, now := w.loop, time.Now()
	l.read(now)
	if l.changed {
		w.reload()
	}
	l.expire(now)
	unit, act := l.decide(now)
	if len(unit.Steps) > 0 || unit.Release {
		if w.write(unit) != nil {
			w.reload()
			return
		}
	}
	if w.crises > 0 && w.dice.IntN(40) == 0 && !unit.Release {
		w.crash() // committed, and nothing of it done
		return
	}
	l.forget()
	for _, i := range act.starts {
		s := &l.steps[i]
		if s.out {
			continue // in Redis
		}
		l.running[i] = running{attempt: s.attempt, cancel: func() {}, heart: &heart{}}
		w.running = append(w.running, attempt{i, s.attempt})
	}
	if act.done {
		if !unit.Release {
			w.fault("the loop ends and keeps its task")
		}
		l.leave()
		w.loop, w.running, w.undelivered = nil, nil, nil
	}
}

// reload is loop.reload: the view is built anew.
func (w *world) reload() {
	w.loop.changed = false
	w.loop.task.Epoch = w.epoch
	clear(w.loop.results)
	w.loop.see(w.read())
}

func (w *world) read() []store.StepRow {
	rows := make([]store.StepRow, len(w.rows))
	for i, r := range w.rows {
		rows[i] = store.StepRow{
			StepID: int64(i + 1), State: r.state, Attempts: r.attempts, Losses: r.losses,
			Dispatched: r.dispatched, Failure: r.failure, RetryIn: time.Until(r.due),
		}
	}
	return rows
}

// claim is tasker.claim_tasks, by a worker that has just come.
func (w *world) claim() {
	w.job = nil
	if w.state == tasker.TaskPending {
		w.state = tasker.TaskInProgress
	}
	w.epoch++
	w.loop = newLoop(w.o, 1, nil)
	w.loop.task = &store.Claimed{TaskID: 1, Epoch: w.epoch}
	w.loop.template = &compiled{Template: w.template, graph: w.graph}
	for i := range w.rows {
		w.rows[i].awaited = w.rows[i].dispatched
	}
	w.loop.see(w.read())
	w.loop.quiet = time.Now()
}

// crash is the death of the worker and what tasker.reap_worker makes of it.
func (w *world) crash() {
	w.crises = max(w.crises-1, 0)
	w.loop, w.running, w.undelivered = nil, nil, nil
	w.epoch++
	for i := range w.rows {
		w.rows[i].awaited = false
	}
	w.job = new(time.Now().Add(time.Duration(w.dice.IntN(5)) * time.Second))
}

// write is tasker.write_batch.
func (w *world) write(unit *store.Unit) error {
	if unit.Epoch != w.epoch {
		return errRefused
	}
	before := slices.Clone(w.rows)
	seen := map[int64]bool{}
	for _, s := range unit.Steps {
		i := int(s.Step) - 1
		r := &w.rows[i]
		if r.state != s.Was || r.attempts != s.WasAttempt {
			w.rows = before
			return errRefused
		}
		if seen[s.Step] {
			w.fault("step %d is written twice at once", i)
		}
		seen[s.Step] = true
		w.judge(i, r, s)
		r.state, r.attempts, r.losses, r.due = s.State, s.Attempt, s.Losses, time.Time{}
		switch s.State { //nolint:exhaustive // the others carry nothing
		case tasker.StepEnqueued:
			r.dispatched, r.awaited = true, true
		case tasker.StepWaitingForRetry:
			r.due = time.Now().Add(s.RetryIn)
		case tasker.StepComplete:
			if err := json.Unmarshal(s.Result, &r.value); err != nil {
				w.fault("step %d completes without its result: %v", i, err)
			}
		}
	}
	for _, id := range unit.Settled {
		w.rows[id-1].dispatched, w.rows[id-1].failure = false, nil
	}
	for _, id := range unit.Parked {
		if r := &w.rows[id-1]; !r.dispatched || r.failure != nil {
			w.rows = before
			return errRefused
		}
		w.rows[id-1].awaited = false
	}
	if n := w.outstanding(); n > w.template.MaxParallelSteps {
		w.fault("%d attempts are out, and max_parallel_steps is %d", n, w.template.MaxParallelSteps)
	}
	if unit.State != "" {
		w.conclude(unit)
	}
	if unit.Rerun != nil {
		w.job = new(time.Now().Add(*unit.Rerun))
	}
	return nil
}

// judge holds one transition against what must always be so.
func (w *world) judge(i int, r *row, s store.StepWrite) {
	if !r.state.CanBecome(s.State) {
		w.fault("step %d goes from %s to %s", i, r.state, s.State)
	}
	if !s.State.Outstanding() {
		if s.State == tasker.StepPending || s.Attempt != r.attempts {
			w.fault("step %d: attempt %d ends as %s of attempt %d", i, r.attempts, s.State, s.Attempt)
		}
		return
	}
	for _, d := range w.graph.Dependencies(i) {
		if !mayFollow(w.rows[d].state) {
			w.fault("step %d starts, and its dependency %d is %s", i, d, w.rows[d].state)
		}
	}
	if s.Attempt != r.attempts+1 {
		w.fault("step %d: attempt %d follows attempt %d", i, s.Attempt, r.attempts)
	}
	if most := w.template.Steps[i].AttemptLimit() + finalizer.MaxLosses; s.Attempt > most {
		w.fault("step %d: attempt %d begins, and at most %d are allowed", i, s.Attempt, most)
	}
	if r.state == tasker.StepWaitingForRetry && r.due.After(time.Now()) {
		w.fault("step %d: attempt %d begins %s early", i, s.Attempt, time.Until(r.due))
	}
	if w.template.OnFailure == tasker.FailFast && w.count(tasker.StepError) > 0 {
		w.fault("step %d starts after a failure, and on_failure is fail_fast", i)
	}
}

// conclude holds the task's end against its steps.
func (w *world) conclude(unit *store.Unit) {
	if !w.state.CanBecome(unit.State) || !unit.Release {
		w.fault("the task goes from %s to %s, released: %t", w.state, unit.State, unit.Release)
	}
	w.state = unit.State
	if n := w.outstanding(); n > 0 {
		w.fault("the task ends as %s while %d attempts are out", w.state, n)
	}
	broken := w.count(tasker.StepError) + w.count(tasker.StepCancelled)
	if (w.state == tasker.TaskError) != (broken > 0) {
		w.fault("the task ends as %s with %d steps in error or cancelled", w.state, broken)
	}
	if w.template.OnFailure == tasker.FailFast {
		return // what could have run and didn't is as it should be
	}
	// Nothing is left behind that could have run.
	p := dag.NewProgress(w.graph, w.states())
	if p.Unfinished() != p.BlockedCount() {
		w.fault("the task ends as %s, and of %d unfinished steps only %d stand behind a failure", w.state, p.Unfinished(), p.BlockedCount())
	}
}

func (w *world) states() []tasker.StepState {
	states := make([]tasker.StepState, len(w.rows))
	for i := range w.rows {
		states[i] = w.rows[i].state
	}
	return states
}

func (w *world) count(s tasker.StepState) (n int) {
	for i := range w.rows {
		if w.rows[i].state == s {
			n++
		}
	}
	return n
}

func (w *world) outstanding() int {
	return w.count(tasker.StepEnqueued) + w.count(tasker.StepInProgress)
}

// happen makes one of the things happen that may happen now.
func (w *world) happen() {
	var may []func()
	for k := range w.running {
		may = append(may, func() { w.goEnds(k) })
	}
	for i := range w.rows {
		if w.rows[i].dispatched && w.rows[i].failure == nil && w.rows[i].state.Outstanding() {
			may = append(may, func() { w.sidekiq(i) })
		}
	}
	if len(w.undelivered) > 0 {
		may = append(may, func() {
			w.loop.mail.put(w.undelivered[0])
			w.undelivered = w.undelivered[1:]
		})
	}
	if w.job != nil && w.loop == nil {
		may = append(may, func() {
			time.Sleep(time.Until(*w.job))
			w.claim()
		})
	}
	if w.loop != nil {
		if next := w.loop.next(); !next.IsZero() {
			may = append(may, func() { time.Sleep(time.Until(next)) })
		}
		if w.loop.mailed() { // news waits for the next turn, which may be the next thing
			may = append(may, func() {})
		}
	}
	if len(may) == 0 {
		w.fault("the task hangs: %s, owned: %t, steps %v", w.state, w.loop != nil, w.states())
		return
	}
	if w.mischief && w.dice.IntN(8) == 0 {
		may = append(may, w.operate)
	}
	if w.loop != nil && w.crises > 0 && w.dice.IntN(20) == 0 {
		may = append(may, w.crash)
	}
	may[w.dice.IntN(len(may))]()
}

// mailed reports whether the loop has mail.
func (l *loop) mailed() bool {
	l.mail.mu.Lock()
	defer l.mail.mu.Unlock()
	return len(l.mail.letters) > 0
}

// used is the number of step i's current attempt as its script counts.
func (w *world) used(i int) int { return w.rows[i].attempts - w.rows[i].losses }

func (w *world) values() []uint64 {
	values := make([]uint64, len(w.rows))
	for i := range w.rows {
		values[i] = w.rows[i].value
	}
	return values
}

// goEnds is the return of a Go handler.
func (w *world) goEnds(k int) {
	a := w.running[k]
	w.running = slices.Delete(w.running, k, k+1)
	e := &ended{position: a.position, attempt: a.number}
	if w.rows[a.position].attempts == a.number {
		switch w.ends(a.position, w.used(a.position)) {
		case success:
			e.result = json.RawMessage(strconv.FormatUint(w.value(a.position, w.used(a.position), w.values()), 10))
		case failure:
			e.failure = &tasker.Failure{Class: "Simulated", Message: "as the script says"}
		case permanent:
			e.failure = &tasker.Failure{Class: "Simulated", Message: "as the script says", Permanent: true}
		case lost:
			e.lost = true
		}
	}
	w.loop.mail.put(letter{ended: e})
}

// sidekiq is what a Sidekiq process does next with an attempt: start it
// (tasker.start_attempt), or report its end (tasker.report_results).
func (w *world) sidekiq(i int) {
	r := &w.rows[i]
	if r.state == tasker.StepEnqueued && w.dice.IntN(4) > 0 { // else the record of its start comes late, or never
		r.state = tasker.StepInProgress
		return
	}
	e := w.ends(i, w.used(i))
	if e != lost && w.crises > 0 && w.dice.IntN(20) == 0 {
		w.crises--
		e = lost
	}
	switch e {
	case success:
		r.value = w.value(i, w.used(i), w.values())
		r.state, r.dispatched = tasker.StepComplete, false
	case failure:
		r.failure = json.RawMessage(`{"class": "Simulated", "message": "as the script says"}`)
	case permanent:
		r.failure = json.RawMessage(`{"class": "Simulated", "message": "as the script says", "permanent": true}`)
	case lost:
		r.failure = json.RawMessage(`{"lost": true}`)
	}
	if !r.awaited {
		w.job = new(time.Now())
		return
	}
	w.undelivered = append(w.undelivered, letter{report: &store.Report{TaskID: 1, StepID: int64(i + 1), State: r.state, Attempts: r.attempts, Failure: r.failure}})
}

// operate cancels or skips a step that is not finished. Whoever holds the task
// learns that it has changed.
func (w *world) operate() {
	i := w.dice.IntN(len(w.rows))
	r := &w.rows[i]
	if r.state.Finished() {
		return
	}
	r.state = []tasker.StepState{tasker.StepCancelled, tasker.StepSkipped}[w.dice.IntN(2)]
	r.dispatched, r.failure, r.value = false, nil, 0
	w.epoch++
	if w.loop != nil {
		w.undelivered = append(w.undelivered, letter{changed: true})
	} else {
		w.job = new(time.Now())
	}
}

// simulate runs the scenario once, with the dice of a seed.
func (s *scenario) simulate(t *testing.T, seed uint64, mischief bool) (w *world, err error) {
	w = &world{scenario: s, mischief: mischief, dice: rand.New(rand.NewPCG(seed, 0))}
	synctest.Test(t, func(*testing.T) { err = w.run() })
	return w, err
}

// Whatever the order in which attempts end, whoever dies and whenever reports
// arrive: no step starts before its dependencies, none is forgotten, no attempt
// is one too many, the task ends, and it ends as its script says it must.
func TestTheEndDoesNotDependOnTheOrder(t *testing.T) {
	hundreds(t, 200, func(r *rapid.T) {
		s := anyScenario(r, 9)
		states, values := s.want()
		w, err := s.simulate(t, rapid.Uint64().Draw(r, "dice"), false)
		if err != nil {
			r.Fatal(err)
		}
		if got := w.states(); !slices.Equal(got, states) {
			r.Fatalf("the steps end as\n%v, and must as\n%v", got, states)
		}
		if got := w.values(); !slices.Equal(got, values) {
			r.Fatalf("the results are\n%v, and must be\n%v", got, values)
		}
	})
}

// With an operator who cancels and skips steps, and with fail_fast, the end
// depends on who is first. All that must always be so is so all the same.
func TestATaskEndsWhateverIsDoneToIt(t *testing.T) {
	hundreds(t, 100, func(r *rapid.T) {
		s := anyScenario(r, 9)
		if rapid.Bool().Draw(r, "fail fast") {
			s.template.OnFailure = tasker.FailFast
		}
		if _, err := s.simulate(t, rapid.Uint64().Draw(r, "dice"), rapid.Bool().Draw(r, "mischief")); err != nil {
			r.Fatal(err)
		}
	})
}
