// Package dag says which steps of a task may start.
//
// Who decides. A Graph is the shape of a template: steps as positions in
// template order, and what each depends on. New is the one judge of that
// shape; whoever accepts a template (package template, the SQL that registers
// one) repeats its verdict and adds none of its own. A Progress is one task's
// run over that shape; it is the one judge of what is viable. Nothing else in
// tasker works readiness out, and SQL is never asked for it: a loop reads its
// steps once and keeps a Progress in memory.
//
// What is trusted. A Progress believes every state it is told. Whether a
// transition is legal is settled where it is written (tasker.StepTransitions
// and the guards in SQL), so states may come in any order and may move
// backwards, as when an operator puts a failed step back to pending. The answers
// depend on the states alone and never on the way that led to them.
//
// What it costs. New and NewProgress are linear in steps and edges. Set costs
// the edges whose meaning changed: a task that runs from its first step to its
// last touches each edge once, be it a chain of 10,000 or a fan of 10,000.
// Listing n viable steps costs n, however large the task is.
//
// What happens when it breaks. There is no input or output here, and nothing
// to repair: a Progress that is lost with its worker is built again from the
// rows in Postgres. A position out of range is a bug of the caller and panics.
//
// A Graph never changes and may be shared by any number of goroutines. A
// Progress belongs to one.
package dag

import (
	"slices"

	"github.com/taskerhq/tasker"
)

// Graph is the shape of a template. Steps are named by their position in the
// template, from 0. Slices that it returns are its own: read them only.
type Graph struct {
	names        []string
	positions    map[string]int
	dependencies [][]int // sorted
	dependents   [][]int // sorted
	edges        int
	levels       []int
	order        []int
}

// New compiles the steps of a template. A dependency named twice counts once.
//
// When the steps are no DAG, the error joins everything that is wrong, in
// template order: *DuplicateNameError, *UnknownDependencyError,
// *SelfDependencyError, and then *CycleError, the shortest first. errors.As
// finds the first of a kind, and Problems takes the error apart.
func New(steps []tasker.StepTemplate) (*Graph, error) {
	g := &Graph{
		names:        make([]string, len(steps)),
		positions:    make(map[string]int, len(steps)),
		dependencies: make([][]int, len(steps)),
	}
	var faults faults
	for i := range steps {
		name := steps[i].Name
		g.names[i] = name
		if first, taken := g.positions[name]; taken {
			faults.add(&DuplicateNameError{Name: name, First: first, Second: i})
			continue
		}
		g.positions[name] = i
	}
	for i := range steps {
		g.dependencies[i] = g.resolve(i, steps[i].DependsOn, &faults)
	}
	g.dependents = reverse(g.dependencies)
	for i := range g.dependencies {
		g.edges += len(g.dependencies[i])
	}

	g.order, g.levels = layer(g.dependencies, g.dependents)
	if len(g.order) < len(steps) {
		for _, cycle := range findCycles(g.dependents) {
			faults.add(&CycleError{Cycle: g.namesOf(cycle)})
		}
	}
	if err := faults.err(); err != nil {
		return nil, err
	}
	return g, nil
}

// resolve turns the dependencies of step i into sorted positions and leaves
// out those that are at fault.
func (g *Graph) resolve(i int, names []string, faults *faults) []int {
	if len(names) == 0 {
		return nil
	}
	positions := make([]int, 0, len(names))
	var reported map[string]bool
	for _, name := range names {
		at, known := g.positions[name]
		if known && name != g.names[i] {
			positions = append(positions, at)
			continue
		}
		if reported[name] {
			continue
		}
		if reported == nil {
			reported = make(map[string]bool)
		}
		reported[name] = true
		if known {
			faults.add(&SelfDependencyError{Step: name, Position: i})
		} else {
			faults.add(&UnknownDependencyError{Step: g.names[i], Position: i, Dependency: name})
		}
	}
	slices.Sort(positions)
	return slices.Clip(slices.Compact(positions))
}

// reverse turns every edge round. The lists of its result are sorted, because
// positions are visited in order, and share one block of memory.
func reverse(edges [][]int) [][]int {
	counts := make([]int, len(edges))
	total := 0
	for _, targets := range edges {
		for _, t := range targets {
			counts[t]++
			total++
		}
	}
	block := make([]int, 0, total)
	reversed := make([][]int, len(edges))
	for i, n := range counts {
		end := len(block) + n
		reversed[i] = block[len(block):len(block):end]
		block = block[:end]
	}
	for i, targets := range edges {
		for _, t := range targets {
			reversed[t] = append(reversed[t], i)
		}
	}
	return reversed
}

// layer gives each step its level and lists the steps by level, then by
// position. Steps on a cycle, and those after one, are missing from the list.
func layer(dependencies, dependents [][]int) (order, levels []int) {
	levels = make([]int, len(dependencies))
	unmet := make([]int, len(dependencies))
	order = make([]int, 0, len(dependencies))
	for i := range dependencies {
		if unmet[i] = len(dependencies[i]); unmet[i] == 0 {
			order = append(order, i)
		}
	}
	// A step joins the list together with the last of its dependencies, so the
	// list grows level by level; sorting each level makes it deterministic.
	for start := 0; start < len(order); {
		end := len(order)
		slices.Sort(order[start:end])
		for _, i := range order[start:end] {
			for _, d := range dependents[i] {
				if unmet[d]--; unmet[d] == 0 {
					levels[d] = levels[i] + 1
					order = append(order, d)
				}
			}
		}
		start = end
	}
	return order, levels
}

// Len is the number of steps.
func (g *Graph) Len() int { return len(g.names) }

// Edges is the number of dependencies.
func (g *Graph) Edges() int { return g.edges }

// Name is the name of the step at position i.
func (g *Graph) Name(i int) string { return g.names[i] }

// Position finds a step by its name.
func (g *Graph) Position(name string) (i int, found bool) {
	i, found = g.positions[name]
	return i, found
}

// Dependencies lists what step i waits for, sorted.
func (g *Graph) Dependencies(i int) []int { return g.dependencies[i] }

// Dependents lists the steps that wait for step i, sorted.
func (g *Graph) Dependents(i int) []int { return g.dependents[i] }

// Roots lists the steps that depend on nothing, sorted.
func (g *Graph) Roots() []int { return withoutEdges(g.dependencies) }

// Leaves lists the steps that nothing depends on, sorted.
func (g *Graph) Leaves() []int { return withoutEdges(g.dependents) }

// Levels gives, for each step, the length in edges of the longest path that
// leads to it from a root. Roots have level 0.
func (g *Graph) Levels() []int { return g.levels }

// TopologicalOrder lists all steps, each after its dependencies: by level, and
// in template order within a level.
func (g *Graph) TopologicalOrder() []int { return g.order }

// CriticalPath is the heaviest path from a root to a leaf, and its weight.
// Weights below zero, and NaN, count as zero; among equals the path through
// the steps that come first in the template wins.
func (g *Graph) CriticalPath(weight func(i int) float64) (path []int, total float64) {
	if len(g.names) == 0 {
		return nil, 0
	}
	sums := make([]float64, len(g.names)) // of the heaviest path that ends here
	previous := make([]int, len(g.names)) // on that path; -1 at a root
	for _, i := range g.order {
		previous[i] = -1
		for _, d := range g.dependencies[i] {
			if previous[i] < 0 || sums[d] > sums[previous[i]] {
				previous[i] = d
			}
		}
		if previous[i] >= 0 {
			sums[i] = sums[previous[i]]
		}
		if w := weight(i); w > 0 {
			sums[i] += w
		}
	}
	end := -1
	for _, leaf := range g.Leaves() {
		if end < 0 || sums[leaf] > sums[end] {
			end = leaf
		}
	}
	for i := end; i >= 0; i = previous[i] {
		path = append(path, i)
	}
	slices.Reverse(path)
	return path, sums[end]
}

func (g *Graph) namesOf(positions []int) []string {
	names := make([]string, len(positions))
	for k, i := range positions {
		names[k] = g.names[i]
	}
	return names
}

func withoutEdges(edges [][]int) []int {
	var found []int
	for i, targets := range edges {
		if len(targets) == 0 {
			found = append(found, i)
		}
	}
	return found
}
