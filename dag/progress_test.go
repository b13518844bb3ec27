package dag_test

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/dag"
)

var everyState = []tasker.StepState{
	tasker.StepPending, tasker.StepEnqueued, tasker.StepInProgress, tasker.StepWaitingForRetry,
	tasker.StepComplete, tasker.StepError, tasker.StepCancelled, tasker.StepSkipped, tasker.StepResolvedManually,
}

func TestStepsBecomeViableWhenAllTheirDependenciesAreSatisfied(t *testing.T) {
	p := dag.NewProgress(graph(t, "load charge:load stock:load ship:charge,stock"), allPending(4))
	expect := func(when string, viable ...int) {
		t.Helper()
		if got := p.Viable(); !slices.Equal(got, viable) {
			t.Errorf("%s: viable %v, want %v", when, got, viable)
		}
	}
	expect("at the start", 0)
	p.Set(0, tasker.StepInProgress)
	expect("while load runs")
	p.Set(0, tasker.StepComplete)
	expect("after load", 1, 2)
	p.Set(2, tasker.StepSkipped)
	expect("with stock skipped", 1)
	p.Set(1, tasker.StepEnqueued)
	p.Set(1, tasker.StepResolvedManually)
	expect("with charge resolved", 3)
	if got := p.FirstViable(0); got != nil {
		t.Errorf("took %v when nothing was asked for", got)
	}
}

func TestARetryIsListedApart(t *testing.T) {
	p := dag.NewProgress(graph(t, "a b"), allPending(2))
	p.Set(0, tasker.StepInProgress)
	p.Set(0, tasker.StepWaitingForRetry)
	if !slices.Equal(p.Viable(), []int{1}) || !slices.Equal(p.Retryable(), []int{0}) || p.Waiting() != 1 {
		t.Errorf("viable %v, retryable %v, waiting %d", p.Viable(), p.Retryable(), p.Waiting())
	}
	p.Set(0, tasker.StepEnqueued)
	if p.Retryable() != nil || p.Outstanding() != 1 || p.Unfinished() != 2 {
		t.Errorf("retryable %v, outstanding %d, unfinished %d", p.Retryable(), p.Outstanding(), p.Unfinished())
	}
}

func TestWhatStandsBehindAFailureIsBlocked(t *testing.T) {
	// load → charge → ship → mail, and load → report
	p := dag.NewProgress(graph(t, "load charge:load ship:charge mail:ship report:load"), allPending(5))
	p.Set(0, tasker.StepComplete)
	expect := func(when string, want ...bool) {
		t.Helper()
		count := 0
		for i, blocked := range want {
			if p.Blocked(i) != blocked {
				t.Errorf("%s: step %d blocked %v, want %v", when, i, p.Blocked(i), blocked)
			}
			if blocked {
				count++
			}
		}
		if p.BlockedCount() != count {
			t.Errorf("%s: %d blocked, want %d", when, p.BlockedCount(), count)
		}
	}
	p.Set(1, tasker.StepError)
	expect("after the failure", false, false, true, true, false)
	if !slices.Equal(p.FailedSteps(), []int{1}) || p.Failed() != 1 {
		t.Errorf("failed %v", p.FailedSteps())
	}
	p.Set(2, tasker.StepSkipped)
	expect("with the step behind it skipped", false, false, false, false, false)
	p.Set(2, tasker.StepCancelled)
	expect("with it cancelled", false, false, false, true, false)
	if !slices.Equal(p.CancelledSteps(), []int{2}) || p.Cancelled() != 1 {
		t.Errorf("cancelled %v", p.CancelledSteps())
	}
	p.Set(2, tasker.StepPending)
	p.Set(1, tasker.StepPending)
	expect("after an operator's retry", false, false, false, false, false)
	if !slices.Equal(p.Viable(), []int{1, 4}) || p.Failed() != 0 {
		t.Errorf("viable %v, failed %d", p.Viable(), p.Failed())
	}
}

func allPending(n int) []tasker.StepState {
	return slices.Repeat([]tasker.StepState{tasker.StepPending}, n)
}

// model answers every question by looking at everything.
type model struct {
	g      *dag.Graph
	states []tasker.StepState
}

func (m model) free(i int) bool {
	return !slices.ContainsFunc(m.g.Dependencies(i), func(d int) bool { return !m.states[d].Satisfied() })
}

func (m model) blocked(i int) bool {
	if s := m.states[i]; s != tasker.StepPending && s != tasker.StepWaitingForRetry {
		return false
	}
	return slices.ContainsFunc(m.g.Dependencies(i), func(d int) bool {
		return m.states[d] == tasker.StepError || m.states[d] == tasker.StepCancelled || m.blocked(d)
	})
}

func (m model) list(wanted func(i int, s tasker.StepState) bool) []int {
	var found []int
	for i, s := range m.states {
		if wanted(i, s) {
			found = append(found, i)
		}
	}
	return found
}

func (m model) check(t *rapid.T, p *dag.Progress) {
	in := func(state tasker.StepState) func(int, tasker.StepState) bool {
		return func(_ int, s tasker.StepState) bool { return s == state }
	}
	blocked := m.list(func(i int, _ tasker.StepState) bool { return m.blocked(i) })
	for _, c := range []struct {
		what      string
		got, want []int
	}{
		{"viable", p.Viable(), m.list(func(i int, s tasker.StepState) bool { return s == tasker.StepPending && m.free(i) })},
		{"retryable", p.Retryable(), m.list(func(i int, s tasker.StepState) bool { return s == tasker.StepWaitingForRetry && m.free(i) })},
		{"failed", p.FailedSteps(), m.list(in(tasker.StepError))},
		{"cancelled", p.CancelledSteps(), m.list(in(tasker.StepCancelled))},
		{"blocked", m.list(func(i int, _ tasker.StepState) bool { return p.Blocked(i) }), blocked},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Fatalf("%s: %v, want %v, with %v", c.what, c.got, c.want, m.states)
		}
	}
	for _, c := range []struct {
		what      string
		got, want int
	}{
		{"viable", p.ViableCount(), len(p.Viable())},
		{"retryable", p.RetryableCount(), len(p.Retryable())},
		{"failed", p.Failed(), len(p.FailedSteps())},
		{"cancelled", p.Cancelled(), len(p.CancelledSteps())},
		{"blocked", p.BlockedCount(), len(blocked)},
		{"waiting", p.Waiting(), len(m.list(in(tasker.StepWaitingForRetry)))},
		{"outstanding", p.Outstanding(), len(m.list(func(_ int, s tasker.StepState) bool { return s.Outstanding() }))},
		{"unfinished", p.Unfinished(), len(m.list(func(_ int, s tasker.StepState) bool { return !s.Finished() }))},
	} {
		if c.got != c.want {
			t.Fatalf("%d %s, want %d, with %v", c.got, c.what, c.want, m.states)
		}
	}
	n := rapid.IntRange(0, m.g.Len()).Draw(t, "n")
	if first := p.FirstViable(n); !slices.Equal(first, p.Viable()[:min(n, p.ViableCount())]) {
		t.Fatalf("first %d: %v of %v", n, first, p.Viable())
	}
}

func TestProgressAgreesWithLookingAtEverything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g, err := dag.New(anyDAG(t, 24))
		if err != nil {
			t.Fatal(err)
		}
		m := model{g, rapid.SliceOfN(rapid.SampledFrom(everyState), g.Len(), g.Len()).Draw(t, "states")}
		p := dag.NewProgress(g, m.states)
		m.states = slices.Clone(m.states)
		m.check(t, p)
		if g.Len() == 0 {
			return
		}
		for range rapid.IntRange(0, 30).Draw(t, "changes") {
			i := rapid.IntRange(0, g.Len()-1).Draw(t, "step")
			s := rapid.SampledFrom(everyState).Draw(t, "state")
			m.states[i] = s
			p.Set(i, s)
			if p.State(i) != s {
				t.Fatalf("step %d is %s, want %s", i, p.State(i), s)
			}
			m.check(t, p)
		}
	})
}

// Legal transitions alone, as a task that runs makes them: a step never starts
// early, no step is left behind, and the end is reached.
func TestATaskRunsToItsEndInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g, err := dag.New(anyDAG(t, 40))
		if err != nil {
			t.Fatal(err)
		}
		p := dag.NewProgress(g, allPending(g.Len()))
		var out []int
		for rounds := 0; p.Unfinished() > 0; rounds++ {
			if rounds > 20*g.Len()+20 {
				t.Fatal("the task doesn't end")
			}
			room := rapid.IntRange(1, 4).Draw(t, "room")
			for _, i := range slices.Concat(p.FirstViable(room), p.Retryable()) {
				for _, d := range g.Dependencies(i) {
					if !p.State(d).Satisfied() {
						t.Fatalf("step %d starts before %d", i, d)
					}
				}
				if !p.State(i).CanBecome(tasker.StepInProgress) {
					t.Fatalf("a step in %s can't start", p.State(i))
				}
				p.Set(i, tasker.StepInProgress)
				out = append(out, i)
			}
			if len(out) == 0 {
				t.Fatalf("nothing runs and %d steps are unfinished", p.Unfinished())
			}
			k := rapid.IntRange(0, len(out)-1).Draw(t, "result of")
			p.Set(out[k], rapid.SampledFrom([]tasker.StepState{
				tasker.StepComplete, tasker.StepComplete, tasker.StepComplete, tasker.StepSkipped, tasker.StepWaitingForRetry,
			}).Draw(t, "result"))
			out = slices.Delete(out, k, k+1)
		}
	})
}

func TestProgressKeepsItsOwnStates(t *testing.T) {
	states := allPending(1)
	p := dag.NewProgress(graph(t, "a"), states)
	states[0] = tasker.StepComplete
	if p.State(0) != tasker.StepPending {
		t.Error("the caller's slice reaches into the progress")
	}
	defer func() {
		if recover() == nil {
			t.Error("accepted 2 states for 1 step")
		}
	}()
	dag.NewProgress(p.Graph(), allPending(2))
}

func fan(n int) []tasker.StepTemplate {
	list := []tasker.StepTemplate{{Name: "first"}}
	last := tasker.StepTemplate{Name: "last"}
	for i := range n {
		name := fmt.Sprintf("s%d", i)
		list = append(list, tasker.StepTemplate{Name: name, DependsOn: []string{"first"}})
		last.DependsOn = append(last.DependsOn, name)
	}
	return append(list, last)
}

func chain(n int) []tasker.StepTemplate {
	list := make([]tasker.StepTemplate, n)
	for i := range list {
		list[i].Name = fmt.Sprintf("s%d", i)
		if i > 0 {
			list[i].DependsOn = []string{list[i-1].Name}
		}
	}
	return list
}

// run takes a task from its first step to its last, one step at a time, and
// returns how many it ran.
func run(g *dag.Graph, states []tasker.StepState) int {
	p := dag.NewProgress(g, states)
	ran := 0
	for {
		next := p.FirstViable(1)
		if next == nil {
			return ran
		}
		p.Set(next[0], tasker.StepInProgress)
		p.Set(next[0], tasker.StepComplete)
		ran++
	}
}

func TestLargeTasksRun(t *testing.T) {
	for name, shape := range map[string][]tasker.StepTemplate{"fan": fan(10_000), "chain": chain(10_000)} {
		g, err := dag.New(shape)
		if err != nil {
			t.Fatal(err)
		}
		if ran := run(g, allPending(g.Len())); ran != len(shape) {
			t.Errorf("%s: %d of %d steps ran", name, ran, len(shape))
		}
		// A failure at the top, and its repair, reach all the way down.
		p := dag.NewProgress(g, allPending(g.Len()))
		p.Set(0, tasker.StepError)
		if p.BlockedCount() != len(shape)-1 {
			t.Errorf("%s: %d blocked", name, p.BlockedCount())
		}
		p.Set(0, tasker.StepPending)
		if p.BlockedCount() != 0 || !slices.Equal(p.Viable(), []int{0}) {
			t.Errorf("%s: %d blocked after the repair, viable %v", name, p.BlockedCount(), p.Viable())
		}
	}
}

func BenchmarkNew(b *testing.B) {
	for name, shape := range map[string][]tasker.StepTemplate{"fan": fan(10_000), "chain": chain(10_000)} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := dag.New(shape); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(shape)), "ns/step")
		})
	}
}

// BenchmarkRun takes whole tasks through, one step at a time: what the loop
// pays for knowing what comes next.
func BenchmarkRun(b *testing.B) {
	for _, c := range []struct {
		name  string
		shape []tasker.StepTemplate
	}{
		{"fan-100", fan(100)},
		{"fan-10000", fan(10_000)},
		{"chain-100", chain(100)},
		{"chain-10000", chain(10_000)},
	} {
		b.Run(c.name, func(b *testing.B) {
			g, err := dag.New(c.shape)
			if err != nil {
				b.Fatal(err)
			}
			states := allPending(g.Len())
			for b.Loop() {
				if run(g, states) != g.Len() {
					b.Fatal("not all steps ran")
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(g.Len()), "ns/step")
		})
	}
}
