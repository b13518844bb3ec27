package dag_test

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/dag"
)

// steps reads a template's shape from "load charge:load ship:load,charge".
func steps(shape string) []tasker.StepTemplate {
	var list []tasker.StepTemplate
	for _, word := range strings.Fields(shape) {
		name, dependencies, some := strings.Cut(word, ":")
		step := tasker.StepTemplate{Name: name}
		if some {
			step.DependsOn = strings.Split(dependencies, ",")
		}
		list = append(list, step)
	}
	return list
}

func graph(t testing.TB, shape string) *dag.Graph {
	t.Helper()
	g, err := dag.New(steps(shape))
	if err != nil {
		t.Fatalf("%s: %v", shape, err)
	}
	return g
}

func TestGraphKnowsItsShape(t *testing.T) {
	g := graph(t, "ship:charge,load load charge:load,load report:load")

	for name, check := range map[string]struct{ got, want any }{
		"length":                  {g.Len(), 4},
		"edges, each once":        {g.Edges(), 4},
		"dependencies, sorted":    {g.Dependencies(0), []int{1, 2}},
		"dependents, sorted":      {g.Dependents(1), []int{0, 2, 3}},
		"roots":                   {g.Roots(), []int{1}},
		"leaves":                  {g.Leaves(), []int{0, 3}},
		"longest way from a root": {g.Levels(), []int{2, 0, 1, 1}},
		"by level, then template": {g.TopologicalOrder(), []int{1, 2, 3, 0}},
		"name":                    {g.Name(3), "report"},
	} {
		if !reflect.DeepEqual(check.got, check.want) {
			t.Errorf("%s: %v, want %v", name, check.got, check.want)
		}
	}
	if at, found := g.Position("charge"); at != 2 || !found {
		t.Errorf("charge is at %d, %v", at, found)
	}
	if _, found := g.Position("refund"); found {
		t.Error("found a step that doesn't exist")
	}
}

func TestTheOrderWithinALevelIsTheTemplates(t *testing.T) {
	// b comes after a, and frees a step before the one that a frees.
	g := graph(t, "x:b y:a a b")
	if want := []int{2, 3, 0, 1}; !slices.Equal(g.TopologicalOrder(), want) {
		t.Errorf("%v, want %v", g.TopologicalOrder(), want)
	}
}

func TestGraphWithoutSteps(t *testing.T) {
	g := graph(t, "")
	if path, total := g.CriticalPath(func(int) float64 { return 1 }); g.Len() != 0 || path != nil || total != 0 {
		t.Errorf("%d steps, path %v of %v", g.Len(), path, total)
	}
	if p := dag.NewProgress(g, nil); p.Unfinished() != 0 || p.Viable() != nil {
		t.Error("a task without steps has something to do")
	}
}

func TestCriticalPathIsTheHeaviest(t *testing.T) {
	g := graph(t, "load fraud:load charge:load ship:fraud,charge mail:charge")
	for _, c := range []struct {
		name    string
		weights []float64
		path    []int
		total   float64
	}{
		{"slow fraud check", []float64{1, 9, 2, 3, 1}, []int{0, 1, 3}, 13},
		{"slow mail", []float64{1, 1, 2, 3, 8}, []int{0, 2, 4}, 11},
		{"among equals the first in the template", []float64{1, 2, 2, 3, 3}, []int{0, 1, 3}, 6},
		{"nothing known", make([]float64, 5), []int{0, 1, 3}, 0},
		{"nonsense counts as zero", []float64{math.NaN(), -5, 1, 1, math.Inf(-1)}, []int{0, 2, 3}, 2},
	} {
		path, total := g.CriticalPath(func(i int) float64 { return c.weights[i] })
		if !slices.Equal(path, c.path) || total != c.total {
			t.Errorf("%s: %v of %v, want %v of %v", c.name, path, total, c.path, c.total)
		}
	}
}

func TestNewRefusesWhatIsNoDAG(t *testing.T) {
	for _, c := range []struct {
		shape string
		want  []string
	}{
		{"a a", []string{`two steps are named "a"; rename one of them`}},
		{"a:b", []string{`step "a" depends on "b", and there is no such step`}},
		{"a:a", []string{`step "a" depends on itself; remove that dependency`}},
		{"charge:ship ship:charge", []string{
			"steps depend on one another in a circle: charge → ship → charge; remove one of these dependencies",
		}},
		{"everything:everything,nothing,nothing b:c b c:b", []string{
			`two steps are named "b"; rename one of them`,
			`step "everything" depends on itself; remove that dependency`,
			`step "everything" depends on "nothing", and there is no such step`,
			"steps depend on one another in a circle: b → c → b; remove one of these dependencies",
		}},
		// The steps after a cycle are not on it.
		{"start a:c,start b:a c:b after:c", []string{
			"steps depend on one another in a circle: a → b → c → a; remove one of these dependencies",
		}},
		// Two tangles: the shorter cycle first.
		{"a:c b:a c:b x:y y:x", []string{
			"steps depend on one another in a circle: x → y → x; remove one of these dependencies",
			"steps depend on one another in a circle: a → b → c → a; remove one of these dependencies",
		}},
		// One tangle of two cycles: the shorter through its first step.
		{"a:c,b b:a c:b", []string{
			"steps depend on one another in a circle: a → b → a; remove one of these dependencies",
		}},
	} {
		_, err := dag.New(steps(c.shape))
		var got []string
		for _, problem := range dag.Problems(err) {
			got = append(got, problem.Error())
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s:\n got %q\nwant %q", c.shape, got, c.want)
		}
	}
}

func TestErrorsAreTyped(t *testing.T) {
	_, err := dag.New(steps("a:a,x b:c c:b b"))
	var (
		duplicate *dag.DuplicateNameError
		unknown   *dag.UnknownDependencyError
		self      *dag.SelfDependencyError
		cycle     *dag.CycleError
	)
	if !errors.As(err, &duplicate) || duplicate.First != 1 || duplicate.Second != 3 {
		t.Errorf("duplicate: %+v", duplicate)
	}
	if !errors.As(err, &unknown) || unknown.Position != 0 || unknown.Dependency != "x" {
		t.Errorf("unknown: %+v", unknown)
	}
	if !errors.As(err, &self) || self.Position != 0 {
		t.Errorf("self: %+v", self)
	}
	if !errors.As(err, &cycle) || cycle.String() != "b → c → b" {
		t.Errorf("cycle: %+v", cycle)
	}
	if dag.Problems(nil) != nil || len(dag.Problems(errors.New("other"))) != 1 {
		t.Error("Problems must leave alone what isn't New's")
	}
}

func TestLongCycleIsShortenedInItsMiddle(t *testing.T) {
	var list []tasker.StepTemplate
	for i := range tasker.MaxSteps {
		list = append(list, tasker.StepTemplate{
			Name:      fmt.Sprintf("s%d", i),
			DependsOn: []string{fmt.Sprintf("s%d", (i+tasker.MaxSteps-1)%tasker.MaxSteps)},
		})
	}
	_, err := dag.New(list)
	var cycle *dag.CycleError
	if !errors.As(err, &cycle) || len(cycle.Cycle) != tasker.MaxSteps {
		t.Fatalf("found %v", err)
	}
	want := "s0 → s1 → s2 → s3 → s4 → s5 → s6 → s7 → s8 → s9 → (9982 more) → " +
		"s9992 → s9993 → s9994 → s9995 → s9996 → s9997 → s9998 → s9999 → s10000 → s10001 → s0"
	if cycle.String() != want {
		t.Errorf("spelled out as %s", cycle)
	}
}

// anyDAG draws a DAG whose edges run in any direction through the template.
func anyDAG(t *rapid.T, most int) []tasker.StepTemplate {
	n := rapid.IntRange(0, most).Draw(t, "steps")
	turn := rapid.Permutation(identity(n)).Draw(t, "order")
	list := make([]tasker.StepTemplate, n)
	for k, i := range turn {
		list[i].Name = fmt.Sprintf("s%d", i)
		if k == 0 {
			continue
		}
		for _, earlier := range rapid.SliceOfN(rapid.IntRange(0, k-1), 0, 4).Draw(t, "dependencies") {
			list[i].DependsOn = append(list[i].DependsOn, fmt.Sprintf("s%d", turn[earlier]))
		}
	}
	return list
}

func identity(n int) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = i
	}
	return list
}

func TestAnyDAGIsAcceptedInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := anyDAG(t, 70)
		g, err := dag.New(list)
		if err != nil {
			t.Fatalf("refused: %v", err)
		}
		place := make([]int, g.Len())
		for k, i := range g.TopologicalOrder() {
			place[i] = k
		}
		if len(g.TopologicalOrder()) != g.Len() {
			t.Fatalf("order %v of %d steps", g.TopologicalOrder(), g.Len())
		}
		for i := range list {
			level := 0
			for _, d := range g.Dependencies(i) {
				if place[d] >= place[i] {
					t.Fatalf("step %d comes before its dependency %d", i, d)
				}
				level = max(level, g.Levels()[d]+1)
				if !slices.Contains(list[i].DependsOn, g.Name(d)) || !slices.Contains(g.Dependents(d), i) {
					t.Fatalf("invented the edge %d → %d", d, i)
				}
			}
			if g.Levels()[i] != level {
				t.Fatalf("step %d has level %d, want %d", i, g.Levels()[i], level)
			}
			for _, name := range list[i].DependsOn {
				if d, _ := g.Position(name); !slices.Contains(g.Dependencies(i), d) {
					t.Fatalf("lost the edge %d → %d", d, i)
				}
			}
			if !slices.IsSorted(g.Dependencies(i)) || !slices.IsSorted(g.Dependents(i)) {
				t.Fatalf("edges of %d are not sorted", i)
			}
		}
	})
}

func TestCriticalPathIsAPathAndNoOtherIsHeavier(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := anyDAG(t, 12)
		g, err := dag.New(list)
		if err != nil {
			t.Fatal(err)
		}
		weights := rapid.SliceOfN(rapid.Float64Range(0, 10), g.Len(), g.Len()).Draw(t, "weights")
		path, total := g.CriticalPath(func(i int) float64 { return weights[i] })
		sum := 0.0
		for k, i := range path {
			sum += weights[i]
			if k > 0 && !slices.Contains(g.Dependencies(i), path[k-1]) {
				t.Fatalf("%v is no path", path)
			}
		}
		if sum != total {
			t.Fatalf("path %v weighs %v, said %v", path, sum, total)
		}
		var heaviest func(i int) float64
		heaviest = func(i int) float64 {
			most := 0.0
			for _, d := range g.Dependencies(i) {
				most = max(most, heaviest(d))
			}
			return most + weights[i]
		}
		for i := range g.Len() {
			if heaviest(i) > total {
				t.Fatalf("a path to %d weighs %v, and the critical one %v", i, heaviest(i), total)
			}
		}
	})
}

func TestAnyCycleIsFoundAndIsOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 12).Draw(t, "steps")
		list := make([]tasker.StepTemplate, n)
		for i := range list {
			list[i].Name = fmt.Sprintf("s%d", i)
			for _, d := range rapid.SliceOfNDistinct(rapid.IntRange(0, n-1), 0, 3, rapid.ID[int]).Draw(t, "dependencies") {
				if d != i {
					list[i].DependsOn = append(list[i].DependsOn, fmt.Sprintf("s%d", d))
				}
			}
		}
		g, err := dag.New(list)
		if acyclic := !reachesItself(list); acyclic != (err == nil) {
			t.Fatalf("acyclic is %v, and New says %v", acyclic, err)
		}
		if g != nil {
			return
		}
		_, again := dag.New(list)
		if again.Error() != err.Error() {
			t.Fatalf("told differently: %v, then %v", err, again)
		}
		shortest := 0
		for _, problem := range dag.Problems(err) {
			var cycle *dag.CycleError
			if !errors.As(problem, &cycle) {
				t.Fatalf("unexpected: %v", problem)
			}
			if len(cycle.Cycle) < shortest {
				t.Fatalf("%v comes after a longer one", cycle)
			}
			shortest = len(cycle.Cycle)
			for k, name := range cycle.Cycle {
				next := cycle.Cycle[(k+1)%len(cycle.Cycle)]
				at := slices.IndexFunc(list, func(s tasker.StepTemplate) bool { return s.Name == next })
				if !slices.Contains(list[at].DependsOn, name) {
					t.Fatalf("%v: %s doesn't depend on %s", cycle, next, name)
				}
			}
		}
	})
}

// reachesItself looks for cycles the plain way.
func reachesItself(list []tasker.StepTemplate) bool {
	byName := map[string]tasker.StepTemplate{}
	for _, s := range list {
		byName[s.Name] = s
	}
	for _, s := range list {
		seen, work := map[string]bool{}, slices.Clone(s.DependsOn)
		for len(work) > 0 {
			name := work[0]
			work = work[1:]
			if name == s.Name {
				return true
			}
			if !seen[name] {
				seen[name] = true
				work = append(work, byName[name].DependsOn...)
			}
		}
	}
	return false
}
