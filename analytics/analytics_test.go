package analytics_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskerhq/tasker/analytics"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/template"
	"github.com/taskerhq/tasker/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// The shape of all tasks here: a, then b and c side by side, then d.
const order = `
name: order
namespace_name: shop
version: 1.0.0
step_templates:
  - {name: a, handler: x}
  - {name: b, handler: x, depends_on_step: a}
  - {name: c, handler_class: Ship, queue: slow, depends_on_step: a}
  - {name: d, handler: x, depends_on_steps: [b, c]}
`

var dependencies = [][]int{{}, {0}, {0}, {1, 2}}

var names = []string{"a", "b", "c", "d"}

// attempt is one as it was.
type attempt struct {
	begun, ended time.Time
	kind         int     // of its failure; -1: it completed
	backoff      float64 // seconds; 0: it was the last
}

type step struct {
	ready    time.Time
	attempts []attempt
	state    string
}

func (s *step) ended() time.Time { return s.attempts[len(s.attempts)-1].ended }

type task struct {
	id                      int64
	created, started, ended time.Time
	state                   string
	steps                   []step // those that began: the first ones
}

// kinds of failures: a class, a message, and its number in place of %d.
var kinds = []struct{ class, message string }{
	{"Net::ReadTimeout", "no answer from 10.0.%d.7:443"}, {"CardError", `card "x%d" was refused`}, {"ArgumentError", "order is empty"},
}

// invent makes a task that was inserted then.
func invent(r *rand.Rand, created time.Time) *task {
	seconds := func(most float64) time.Duration {
		return time.Duration(most*math.Pow(r.Float64(), 3)*1e6)*time.Microsecond + time.Microsecond
	}
	t := &task{created: created, state: "complete"}
	t.started = created.Add(seconds(2))
	t.ended = t.started
	for i, on := range dependencies {
		s := step{ready: t.started, state: "complete"}
		for _, d := range on {
			if at := t.steps[d].ended(); at.After(s.ready) {
				s.ready = at
			}
		}
		at := s.ready.Add(seconds(3))
		for {
			a := attempt{begun: at, ended: at.Add(seconds(20)), kind: -1}
			if r.IntN(5) == 0 {
				a.kind = r.IntN(len(kinds))
				if len(s.attempts) < 2 {
					a.backoff = float64(1 + r.IntN(4))
				} else {
					s.state = "error"
				}
			}
			s.attempts = append(s.attempts, a)
			if a.backoff == 0 {
				break
			}
			at = a.ended.Add(time.Duration(a.backoff*1e6)*time.Microsecond + seconds(0.5))
		}
		t.steps = append(t.steps, s)
		if s.ended().After(t.ended) {
			t.ended = s.ended()
		}
		// b and c both run to their end; a failure of any of them is the end of the task.
		if s.state == "error" && i != 1 || i == 2 && t.steps[1].state == "error" {
			t.state = "error"
			break
		}
	}
	return t
}

type event struct {
	at      time.Time
	name    string
	step    int
	attempt int
	data    any
}

func (t *task) events() (all []event) {
	add := func(at time.Time, name string, step, attempt int, data any) {
		all = append(all, event{at, name, step, attempt, data})
	}
	add(t.created, "task.initialize_requested", -1, 0, nil)
	add(t.started, "task.start_requested", -1, 0, nil)
	for i, s := range t.steps {
		for k, a := range s.attempts {
			add(a.begun, "step.handle", i, k+1, nil)
			failure := map[string]any{}
			if a.kind >= 0 {
				failure = map[string]any{"class": kinds[a.kind].class, "message": fmt.Sprintf(kinds[a.kind].message, i+k*10)}
				if a.kind == 2 {
					failure["message"] = kinds[2].message
				}
			}
			switch {
			case a.kind < 0:
				add(a.ended, "step.completed", i, k+1, nil)
			case a.backoff > 0:
				failure["retry_in_seconds"] = a.backoff
				add(a.ended, "step.retry_requested", i, k+1, failure)
			default:
				add(a.ended, "step.failed", i, k+1, failure)
			}
		}
	}
	add(t.ended, map[string]string{"complete": "task.completed", "error": "task.failed"}[t.state], -1, 0, nil)
	slices.SortStableFunc(all, func(a, b event) int { return a.at.Compare(b.at) })
	return all
}

type world struct {
	*testing.T
	pool     *pgxpool.Pool
	store    *store.Store
	template int64
}

func newWorld(t *testing.T) *world {
	t.Helper()
	t.Parallel()
	w := &world{T: t, pool: testenv.Pool(t, testenv.Database(t))}
	w.store = store.New(w.pool)
	parsed, err := template.Parse("order.yaml", []byte(order), template.Options{})
	w.must(err)
	_, err = w.store.RegisterTemplate(t.Context(), parsed, template.Checksum(parsed))
	w.must(err)
	w.must(w.pool.QueryRow(t.Context(), `SELECT template_id FROM tasker.task_templates`).Scan(&w.template))
	return w
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// record writes what was, without any of it happening again.
func (w *world) record(tasks []*task) {
	w.Helper()
	type row struct {
		event
		task *task
	}
	w.must(pgx.BeginFunc(w.Context(), w.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(w.Context(), `SET LOCAL session_replication_role = replica`); err != nil {
			return err
		}
		var rows []row
		ids := map[*task][]int64{}
		for _, t := range tasks {
			if err := tx.QueryRow(w.Context(), `INSERT INTO tasker.tasks (template_id, namespace, name, version, state, created_at, started_at, finished_at)
				VALUES ($1, 'shop', 'order', '1.0.0', $2, $3, $4, $5) RETURNING task_id`, w.template, t.state, t.created, t.started, t.ended).Scan(&t.id); err != nil {
				return err
			}
			for i, name := range names {
				state, attempts, begun, ended := "pending", 0, (*time.Time)(nil), (*time.Time)(nil)
				if i < len(t.steps) {
					s := t.steps[i]
					at := s.ended()
					state, attempts, begun, ended = s.state, len(s.attempts), &s.attempts[len(s.attempts)-1].begun, &at
				}
				var id int64
				if err := tx.QueryRow(w.Context(), `INSERT INTO tasker.steps (task_id, position, name, state, attempts, started_at, finished_at) VALUES ($1, $2, $3, $4, $5, $6, $7)
					RETURNING step_id`, t.id, i, name, state, attempts, begun, ended).Scan(&id); err != nil {
					return err
				}
				ids[t] = append(ids[t], id)
			}
			for _, e := range t.events() {
				rows = append(rows, row{e, t})
			}
		}
		slices.SortStableFunc(rows, func(a, b row) int { return a.at.Compare(b.at) })
		batch := &pgx.Batch{}
		for _, r := range rows {
			var step, attempt *int64
			if r.step >= 0 {
				n := int64(r.attempt)
				step, attempt = &ids[r.task][r.step], &n
			}
			data, err := json.Marshal(r.data)
			if err != nil {
				return err
			}
			if r.data == nil {
				data = nil
			}
			batch.Queue(`INSERT INTO tasker.events (task_id, step_id, created_at, attempt, name, data) VALUES ($1, $2, $3, $4, $5, $6)`, r.task.id, step, r.at, attempt, r.name, data)
		}
		return tx.SendBatch(w.Context(), batch).Close()
	}))
}

// rollUp counts all there is, by several at once, in portions.
func (w *world) rollUp() {
	w.Helper()
	const most = 97
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			for {
				var n *int
				if err := w.pool.QueryRow(w.Context(), `SELECT tasker.roll_up($1, 0)`, most).Scan(&n); err != nil {
					w.Error(err)
					return
				}
				if n != nil && *n < most {
					return
				}
			}
		})
	}
	all.Wait()
}

// expected is what is to be found of the events that a test keeps, computed from
// the tasks alone.
type expected struct {
	outcomes map[string]*store.Outcome              // by step
	seconds  map[string]map[store.Measure][]float64 // of each, all
	slow     map[bool][]store.Slow                  // steps, and tasks
	failures map[string]map[int]int64               // by step and kind
	last     map[string]map[int]time.Time           // of those
}

func expect(tasks []*task, within func(time.Time) bool) *expected {
	x := &expected{map[string]*store.Outcome{}, map[string]map[store.Measure][]float64{}, map[bool][]store.Slow{}, map[string]map[int]int64{}, map[string]map[int]time.Time{}}
	outcome := func(step string) *store.Outcome {
		if x.outcomes[step] == nil {
			x.outcomes[step] = &store.Outcome{Namespace: "shop", Name: "order", Step: step}
			x.seconds[step] = map[store.Measure][]float64{}
			x.failures[step] = map[int]int64{}
			x.last[step] = map[int]time.Time{}
		}
		return x.outcomes[step]
	}
	took := func(step string, m store.Measure, d time.Duration) {
		o := outcome(step)
		switch m {
		case store.MeasureRun:
			o.Ran, o.RanSeconds = o.Ran+1, o.RanSeconds+d.Seconds()
		case store.MeasureWait:
			o.Waited, o.WaitedSeconds = o.Waited+1, o.WaitedSeconds+d.Seconds()
		case store.MeasureTotal:
			o.Took, o.TookSeconds = o.Took+1, o.TookSeconds+d.Seconds()
		case store.MeasureBackoff:
		}
		x.seconds[step][m] = append(x.seconds[step][m], d.Seconds())
	}
	for _, t := range tasks {
		if within(t.created) {
			outcome("").Created++
		}
		if within(t.ended) {
			o := outcome("")
			if t.state == "complete" {
				o.Completed++
			} else {
				o.Failed++
			}
			took("", store.MeasureTotal, t.ended.Sub(t.created))
			took("", store.MeasureRun, t.ended.Sub(t.started))
			took("", store.MeasureWait, t.started.Sub(t.created))
			x.slow[false] = append(x.slow[false], store.Slow{Task: t.id, Seconds: t.ended.Sub(t.created).Seconds()})
		}
		for i, s := range t.steps {
			name := names[i]
			for k, a := range s.attempts {
				if !within(a.ended) {
					continue
				}
				o := outcome(name)
				took(name, store.MeasureRun, a.ended.Sub(a.begun))
				if k == 0 {
					took(name, store.MeasureWait, a.begun.Sub(s.ready))
				}
				if a.kind >= 0 {
					x.failures[name][a.kind]++
					if a.ended.After(x.last[name][a.kind]) {
						x.last[name][a.kind] = a.ended
					}
				}
				switch {
				case a.kind < 0:
					o.Completed++
					if k > 0 {
						o.Recovered++
					}
				case a.backoff > 0:
					o.Retried++
					took(name, store.MeasureBackoff, time.Duration(a.backoff*1e9))
				default:
					o.Failed++
					if k > 0 {
						o.Exhausted++
					}
				}
				if a.backoff == 0 {
					x.slow[true] = append(x.slow[true], store.Slow{Task: t.id, Step: name, Seconds: a.ended.Sub(a.begun).Seconds()})
				}
			}
		}
	}
	return x
}

func near(a, b float64) bool { return math.Abs(a-b) <= 1e-6*max(1, math.Abs(a), math.Abs(b)) }

// percentile is the value of the rank, without any buckets.
func percentile(values []float64, p float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[max(0, int(math.Ceil(p*float64(len(sorted))))-1)]
}

func (w *world) check(x *expected, c store.Scope) {
	w.Helper()
	outcomes, err := w.store.Outcomes(w.Context(), c)
	w.must(err)
	if len(outcomes) != len(x.outcomes) {
		w.Errorf("%d outcomes, not %d", len(outcomes), len(x.outcomes))
	}
	for _, o := range outcomes {
		want := x.outcomes[o.Step]
		if want == nil || !near(o.RanSeconds, want.RanSeconds) || !near(o.WaitedSeconds, want.WaitedSeconds) || !near(o.TookSeconds, want.TookSeconds) {
			w.Errorf("step %q: outcomes %+v, not %+v", o.Step, o, want)
			continue
		}
		o.RanSeconds, o.WaitedSeconds, o.TookSeconds = want.RanSeconds, want.WaitedSeconds, want.TookSeconds // added up in another order
		if o != *want {
			w.Errorf("step %q: outcomes %+v, not %+v", o.Step, o, want)
		}
	}
	figures, err := w.store.Figures(w.Context(), c)
	w.must(err)
	found := 0
	for _, f := range figures {
		values := x.seconds[f.Step][f.Measure]
		found++
		if int(f.N) != len(values) {
			w.Errorf("step %q, %s: n %d, not %d", f.Step, f.Measure, f.N, len(values))
			continue
		}
		var sum float64
		for _, v := range values {
			sum += v
		}
		if !near(f.Mean, sum/float64(len(values))) {
			w.Errorf("step %q, %s: mean %v, not %v", f.Step, f.Measure, f.Mean, sum/float64(len(values)))
		}
		for p, got := range map[float64]float64{0.5: f.P50, 0.9: f.P90, 0.95: f.P95, 0.99: f.P99} {
			want := percentile(values, p)
			if math.Abs(math.Log2(got/want)) > 1.0/8+1e-9 {
				w.Errorf("step %q, %s: p%v %v, the true one is %v", f.Step, f.Measure, p*100, got, want)
			}
		}
		bars, err := w.store.Histogram(w.Context(), store.Scope{Namespace: f.Namespace, Name: f.Name, Period: c.Period}, f.Step, f.Measure)
		w.must(err)
		var counted int64
		for _, b := range bars {
			n := int64(0)
			for _, v := range values {
				if v := max(v, 1e-6); v >= b.AtLeast*(1-1e-9) && v < b.Below*(1-1e-9) {
					n++
				}
			}
			if n != b.N {
				w.Errorf("step %q, %s: %d from %v to %v, not %d", f.Step, f.Measure, b.N, b.AtLeast, b.Below, n)
			}
			counted += b.N
		}
		if counted != f.N {
			w.Errorf("step %q, %s: the histogram has %d of %d", f.Step, f.Measure, counted, f.N)
		}
	}
	want := 0
	for _, of := range x.seconds {
		want += len(of)
	}
	if found != want {
		w.Errorf("%d figures, not %d", found, want)
	}
	failures, err := w.store.Failures(w.Context(), c, 1000)
	w.must(err)
	for _, f := range failures {
		kind := slices.IndexFunc(kinds, func(k struct{ class, message string }) bool { return k.class == f.Class })
		if kind < 0 || x.failures[f.Step][kind] != f.N || f.LastAt.Sub(x.last[f.Step][kind]).Abs() > time.Microsecond {
			w.Errorf("step %q: %d times %s, last at %s, not %v at %v", f.Step, f.N, f.Class, f.LastAt, x.failures[f.Step], x.last[f.Step])
		}
		delete(x.failures[f.Step], kind)
	}
	for step, left := range x.failures {
		if len(left) > 0 {
			w.Errorf("step %q: failures %v are not listed, or several times", step, left)
		}
	}
	if !slices.IsSortedFunc(failures, func(a, b store.Failure) int { return cmp.Compare(b.N, a.N) }) {
		w.Error("the most frequent failure is not the first")
	}
}

func (w *world) checkSlowest(x *expected, c store.Scope) {
	w.Helper()
	for _, steps := range []bool{false, true} {
		slow, err := w.store.Slowest(w.Context(), c, steps, 10)
		w.must(err)
		want := x.slow[steps]
		slices.SortFunc(want, func(a, b store.Slow) int { return cmp.Compare(b.Seconds, a.Seconds) })
		for i := range min(10, len(want)) {
			if i >= len(slow) || slow[i].Task != want[i].Task || slow[i].Step != want[i].Step || !near(slow[i].Seconds, want[i].Seconds) {
				w.Errorf("slowest %d (steps: %t): %+v, not %+v", i, steps, slow[min(i, len(slow)-1)], want[i])
			}
		}
	}
}

// Known histories, figured twice: by the counts, and here from the tasks alone.
func TestFiguresOfKnownHistories(t *testing.T) {
	w := newWorld(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	now := time.Now().Truncate(time.Microsecond)
	var tasks []*task
	for range 150 { // nothing ends from 75 to 55 minutes ago, where the last hour may begin
		tasks = append(tasks, invent(r, now.Add(-3*time.Hour-time.Duration(r.Int64N(int64(100*time.Minute))).Truncate(time.Microsecond))),
			invent(r, now.Add(-10*time.Minute-time.Duration(r.Int64N(int64(40*time.Minute))).Truncate(time.Microsecond))))
	}
	// In two halves, with some of the first half's events yet to be counted.
	w.record(tasks[:200])
	if _, err := w.store.RollUp(t.Context(), 500); err != nil {
		t.Fatal(err)
	}
	w.record(tasks[200:])
	w.rollUp()

	hour := now.Add(-65 * time.Minute)
	w.check(expect(tasks, func(at time.Time) bool { return at.After(hour) }), store.Scope{Period: time.Hour})
	all := expect(tasks, func(time.Time) bool { return true })
	w.check(all, store.Scope{Period: 24 * time.Hour})
	w.checkSlowest(all, store.Scope{Period: 24 * time.Hour})
	w.check(expect(tasks, func(time.Time) bool { return true }), store.Scope{Period: 7 * 24 * time.Hour, Namespace: "shop", Name: "order"})
	w.check(expect(nil, nil), store.Scope{Period: 24 * time.Hour, Name: "other"})

	// What is made of them.
	all = expect(tasks, func(time.Time) bool { return true })
	p, err := analytics.PerformanceOf(t.Context(), w.store, store.Scope{Period: 24 * time.Hour})
	w.must(err)
	o, total, runs := p.Periods["24h"], all.seconds[""][store.MeasureTotal], []float64{}
	recovered, exhausted := int64(0), int64(0)
	for _, name := range names {
		runs = append(runs, all.seconds[name][store.MeasureRun]...)
		recovered, exhausted = recovered+all.outcomes[name].Recovered, exhausted+all.outcomes[name].Exhausted
	}
	want := analytics.Overview{
		Created: 300, Completed: all.outcomes[""].Completed, Failed: all.outcomes[""].Failed, Ended: 300, PerSecond: 300.0 / 86400,
		Completion: float64(all.outcomes[""].Completed) / 300, Error: float64(all.outcomes[""].Failed) / 300, Seconds: mean(total),
		Steps: float64(len(runs)) / 86400, Run: mean(runs), Retry: float64(recovered) / float64(recovered+exhausted),
	}
	if o.Created != want.Created || o.Completed != want.Completed || o.Failed != want.Failed || o.Ended != want.Ended || !near(o.PerSecond, want.PerSecond) ||
		!near(o.Completion, want.Completion) || !near(o.Error, want.Error) || !near(o.Seconds, want.Seconds) || !near(o.Steps, want.Steps) || !near(o.Run, want.Run) || !near(o.Retry, want.Retry) {
		t.Errorf("a day is summed up as %+v, not %+v", o, want)
	}
	var parts [3]float64
	for _, name := range names {
		for i, m := range []store.Measure{store.MeasureWait, store.MeasureRun, store.MeasureBackoff} {
			for _, v := range all.seconds[name][m] {
				parts[i] += v
			}
		}
	}
	sum := parts[0] + parts[1] + parts[2]
	if len(p.Templates) != 1 || !near(p.Templates[0].Shares.Wait, parts[0]/sum) || !near(p.Templates[0].Shares.Run, parts[1]/sum) || !near(p.Templates[0].Shares.Backoff, parts[2]/sum) {
		t.Errorf("shares %+v, not %v of %v", p.Templates, parts, sum)
	}
	spans := store.Span{}
	for _, s := range p.Trend {
		spans.Created, spans.Completed, spans.Failed, spans.Attempts = spans.Created+s.Created, spans.Completed+s.Completed, spans.Failed+s.Failed, spans.Attempts+s.Attempts
		if !s.Since.Equal(s.Since.Truncate(time.Hour)) || s.Minutes != 60 {
			t.Errorf("a span of %d minutes since %s", s.Minutes, s.Since)
		}
	}
	if spans.Created != 300 || spans.Completed != want.Completed || spans.Failed != want.Failed || spans.Attempts != int64(len(runs)) {
		t.Errorf("the trend adds up to %+v", spans)
	}
	for _, known := range tasks {
		w.checkTask(known)
	}
}

func mean(values []float64) (m float64) {
	for _, v := range values {
		m += v / float64(len(values))
	}
	return m
}

// checkTask compares what is said of a task with what was.
func (w *world) checkTask(known *task) {
	w.Helper()
	got, err := analytics.TaskOf(w.Context(), w.store, known.id)
	w.must(err)
	var work float64
	run := make([]float64, len(names))
	for i, s := range known.steps {
		var backoff float64
		for k, a := range s.attempts {
			run[i] += a.ended.Sub(a.begun).Seconds()
			if a.backoff > 0 {
				backoff += s.attempts[k+1].begun.Sub(a.ended).Seconds()
			}
		}
		work += run[i]
		c := got.Steps[i]
		if !near(c.Run, run[i]) || !near(c.Backoff, backoff) || !near(c.Wait, s.attempts[0].begun.Sub(s.ready).Seconds()) || c.Attempts != len(s.attempts) {
			w.Errorf("task %d, step %s: %+v; it ran %v and waited %v for retries", known.id, names[i], c, run[i], backoff)
		}
	}
	shortest := max(run[0]+run[1]+run[3], run[0]+run[2]+run[3]) // both ways through
	elapsed := known.ended.Sub(known.started).Seconds()
	if !near(got.Work, work) || !near(got.Shortest, shortest) || !near(got.Possible, work/shortest) || !near(got.Elapsed, elapsed) || !near(got.Reached, work/elapsed) {
		w.Errorf("task %d: work %v, shortest %v, elapsed %v, parallelism %v of %v; not %v, %v, %v", known.id, got.Work, got.Shortest, got.Elapsed, got.Reached, got.Possible, work, shortest, elapsed)
	}
	// The links follow on one another: all of the time is theirs.
	var sum, shares float64
	for i, l := range got.Path {
		sum, shares = sum+l.Seconds, shares+l.Share
		if !near(l.Seconds, l.Wait+l.Run+l.Backoff) {
			w.Errorf("task %d: link %+v does not add up", known.id, l)
		}
		if at := slices.Index(names, l.Step); i > 0 && !slices.Contains(dependencies[at], slices.Index(names, got.Path[i-1].Step)) {
			w.Errorf("task %d: path %v", known.id, got.Path)
		}
	}
	if !near(sum, elapsed) || !near(shares, 1) {
		w.Errorf("task %d: the path takes %v of %v, shares %v", known.id, sum, elapsed, shares)
	}
	failed := map[string]int{}
	for i, s := range known.steps {
		for _, a := range s.attempts {
			if a.kind >= 0 {
				failed[names[i]]++
			}
		}
	}
	for _, e := range got.Errors {
		if failed[e.Step] != len(e.Failed) {
			w.Errorf("task %d: %d failures of %s, not %d", known.id, len(e.Failed), e.Step, failed[e.Step])
		}
		delete(failed, e.Step)
		if e.Ended && e.Step != "d" && !slices.Contains(e.Blocked, "d") {
			w.Errorf("task %d: %s is said to block %v", known.id, e.Step, e.Blocked)
		}
	}
	if len(failed) > 0 {
		w.Errorf("task %d: failures of %v are missing", known.id, failed)
	}
	if got.Remaining != nil {
		w.Errorf("task %d has ended, and is said to take %v more", known.id, *got.Remaining)
	}
}

// An event whose transaction commits after later ones were counted is counted, once.
func TestWhatCommitsLateCountsOnce(t *testing.T) {
	w := newWorld(t)
	r := rand.New(rand.NewPCG(1, 2))
	tasks := []*task{invent(r, time.Now().Add(-time.Hour).Truncate(time.Microsecond)), invent(r, time.Now().Add(-time.Hour).Truncate(time.Microsecond))}
	for _, task := range tasks {
		task.state = "complete"
	}
	w.record(tasks[:1])
	late, err := w.pool.Begin(t.Context())
	w.must(err)
	defer func() { _ = late.Rollback(context.WithoutCancel(t.Context())) }()
	_, err = late.Exec(t.Context(), `INSERT INTO tasker.events (task_id, created_at, name) VALUES ($1, $2, 'task.cancelled')`, tasks[0].id, tasks[0].ended)
	w.must(err)
	w.record(tasks[1:])
	w.rollUp()
	cancelled := func(want int64) {
		t.Helper()
		outcomes, err := w.store.Outcomes(t.Context(), store.Scope{Period: 24 * time.Hour})
		w.must(err)
		if at := slices.IndexFunc(outcomes, func(o store.Outcome) bool { return o.Step == "" }); outcomes[at].Cancelled != want || outcomes[at].Created != 2 {
			t.Errorf("%d cancelled of %d, not %d of 2", outcomes[at].Cancelled, outcomes[at].Created, want)
		}
	}
	cancelled(0)
	w.must(late.Commit(t.Context()))
	for range 3 {
		w.rollUp()
		cancelled(1)
	}
}

// After much work the counts rest, so that they take their share of the time only.
func TestCountsTakeTheirShareOfTheTime(t *testing.T) {
	w := newWorld(t)
	r := rand.New(rand.NewPCG(1, 2))
	w.record([]*task{invent(r, time.Now().Add(-time.Hour).Truncate(time.Microsecond))})
	n, err := w.store.RollUp(t.Context(), 5)
	w.must(err)
	var rest bool
	w.must(w.pool.QueryRow(t.Context(), `SELECT rest_until > now() FROM tasker.stats_progress`).Scan(&rest))
	if n != 5 || !rest {
		t.Fatalf("read %d of 5, rests: %t", n, rest)
	}
	_, err = w.pool.Exec(t.Context(), `UPDATE tasker.stats_progress SET rest_until = now() + interval '1 hour'`)
	w.must(err)
	if n, err := w.store.RollUp(t.Context(), 5); n != 0 || err != nil {
		t.Errorf("read %d, %v while it rests", n, err)
	}
	_, err = w.pool.Exec(t.Context(), `UPDATE tasker.stats_progress SET rest_until = now() - interval '1 s'`)
	w.must(err)
	if n, err := w.store.RollUp(t.Context(), 1000); n == 0 || n == 1000 || err != nil {
		t.Errorf("read %d, %v after its rest", n, err)
	}
	w.must(w.pool.QueryRow(t.Context(), `SELECT rest_until IS NOT NULL FROM tasker.stats_progress`).Scan(&rest))
	if rest {
		t.Error("it rests although there is no more to do")
	}
}
