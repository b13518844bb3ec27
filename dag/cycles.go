package dag

import (
	"cmp"
	"slices"
)

// findCycles returns one cycle for each group of steps that are tangled up in
// one another, as positions in the order in which they would run: the shortest
// cycle through the group's first step in template order. Shorter cycles come
// first, and equally long ones in template order.
//
// A tangle may hold shorter cycles than the one shown. The shortest of all
// would cost steps × edges to find, and whoever breaks one cycle runs the check
// again anyway; this way a template of 10,000 steps is refused in linear time.
func findCycles(dependents [][]int) [][]int {
	var cycles [][]int
	tangle, sizes := tangles(dependents)
	seen := make([]bool, len(sizes))
	for i, t := range tangle {
		if sizes[t] > 1 && !seen[t] {
			seen[t] = true
			cycles = append(cycles, shortestCycle(dependents, tangle, i))
		}
	}
	slices.SortStableFunc(cycles, func(a, b []int) int { return cmp.Compare(len(a), len(b)) })
	return cycles
}

// shortestCycle searches breadth first from start, within its tangle, for the
// shortest way back.
func shortestCycle(dependents [][]int, tangle []int, start int) []int {
	previous := map[int]int{}
	queue := []int{start}
	for len(queue) > 0 {
		i := queue[0]
		queue = queue[1:]
		for _, d := range dependents[i] {
			if d == start {
				cycle := []int{i}
				for i != start {
					i = previous[i]
					cycle = append(cycle, i)
				}
				slices.Reverse(cycle)
				return cycle
			}
			if _, seen := previous[d]; !seen && tangle[d] == tangle[start] {
				previous[d] = i
				queue = append(queue, d)
			}
		}
	}
	return nil // not reached: each step of a tangle leads back to itself
}

// tangles finds the strongly connected components (Tarjan): of[i] numbers the
// component of step i, sizes its steps. It keeps its own stack, because a chain
// of 10,000 steps would be as many nested calls.
func tangles(dependents [][]int) (of, sizes []int) {
	const unseen = -1
	n := len(dependents)
	of = make([]int, n)
	index := make([]int, n) // the order in which steps are met
	low := make([]int, n)   // the earliest open step that can be reached
	for i := range n {
		of[i], index[i] = unseen, unseen
	}
	type visit struct{ step, edge int }
	var calls []visit
	var open []int // met, but not yet in a component
	met := 0
	meet := func(i int) {
		index[i], low[i] = met, met
		met++
		open = append(open, i)
		calls = append(calls, visit{step: i})
	}
	for root := range n {
		if index[root] != unseen {
			continue
		}
		meet(root)
		for len(calls) > 0 {
			at := &calls[len(calls)-1]
			i := at.step
			if at.edge < len(dependents[i]) {
				d := dependents[i][at.edge]
				at.edge++
				switch {
				case index[d] == unseen:
					meet(d)
				case of[d] == unseen:
					low[i] = min(low[i], index[d])
				}
				continue
			}
			calls = calls[:len(calls)-1]
			if len(calls) > 0 {
				caller := calls[len(calls)-1].step
				low[caller] = min(low[caller], low[i])
			}
			if low[i] == index[i] {
				sizes = append(sizes, 0)
				for of[i] == unseen {
					last := open[len(open)-1]
					open = open[:len(open)-1]
					of[last] = len(sizes) - 1
					sizes[len(sizes)-1]++
				}
			}
		}
	}
	return of, sizes
}
