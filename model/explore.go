package model

// Found is what Explore has found.
type Found struct {
	States int
	Broken string   // what is wrong; empty: nothing
	Path   []string // the actions that lead there
}

// Explore walks through all that can happen within the budget.
func Explore(r Rules, b Budget) Found {
	first := start(b)
	type edge struct {
		from int
		name string
	}
	index := map[state]int{first: 0}
	states := []state{first}
	came := []edge{{-1, ""}}
	var back [][]int32 // for each state: those from which the system leads here by itself
	back = append(back, nil)
	path := func(i int) []string {
		var p []string
		for ; came[i].from >= 0; i = came[i].from {
			p = append([]string{came[i].name}, p...)
		}
		return p
	}
	for i := 0; i < len(states); i++ {
		for _, n := range r.steps(states[i]) {
			j, known := index[n.to]
			if !known {
				j = len(states)
				index[n.to] = j
				states = append(states, n.to)
				came = append(came, edge{i, n.name})
				back = append(back, nil)
				if n.to.broken != "" {
					return Found{States: len(states), Broken: n.to.broken, Path: path(j)}
				}
			}
			if !n.befell {
				back[j] = append(back[j], int32(i))
			}
		}
	}
	// From where can the end be reached, if nothing more befalls it?
	ends := make([]bool, len(states))
	var todo []int32
	for i := range states {
		if states[i].ended {
			ends[i] = true
			todo = append(todo, int32(i))
		}
	}
	for len(todo) > 0 {
		i := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, j := range back[i] {
			if !ends[j] {
				ends[j] = true
				todo = append(todo, j)
			}
		}
	}
	for i := range states {
		if !ends[i] {
			return Found{States: len(states), Broken: "the task can't come to its end any more", Path: path(i)}
		}
	}
	return Found{States: len(states)}
}
