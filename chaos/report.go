//go:build linux

package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
)

// result is one run.
type result struct {
	Seed       int64               `json:"seed"`
	Seconds    float64             `json:"seconds"`
	Settled    float64             `json:"settled_seconds"` // until all had ended, in peace
	Tasks      int                 `json:"tasks"`
	Steps      int                 `json:"steps"`
	Losses     int                 `json:"attempts_lost"`
	Refused    int                 `json:"reports_refused"`
	Duplicates map[string]int      `json:"duplicates"` // entries of the ledger beyond the first, by kind of handler
	Faults     map[string]*figures `json:"faults"`
	Broken     []string            `json:"broken"`
}

// figures are of one kind of fault.
type figures struct {
	Times    int       `json:"times"`
	Affected int       `json:"affected"` // tasks or steps whose recovery was measured
	Seconds  []float64 `json:"recovery_seconds"`
}

func (r *result) count(h *happened) {
	f := r.Faults[h.fault.name]
	if f == nil {
		f = &figures{}
		r.Faults[h.fault.name] = f
	}
	f.Times++
	if h.apart {
		f.Affected += len(h.recovery)
		for _, d := range h.recovery {
			f.Seconds = append(f.Seconds, d.Seconds())
		}
	}
}

// summary is all runs.
type summary struct {
	Runs []*result `json:"runs"`
}

func (s *summary) add(r *result) { s.Runs = append(s.Runs, r) }

func (s *summary) print(w io.Writer) {
	total := result{Duplicates: map[string]int{}, Faults: map[string]*figures{}}
	struck := 0
	for _, r := range s.Runs {
		total.Tasks, total.Steps = total.Tasks+r.Tasks, total.Steps+r.Steps
		total.Losses, total.Refused = total.Losses+r.Losses, total.Refused+r.Refused
		total.Broken = append(total.Broken, r.Broken...)
		for kind, n := range r.Duplicates {
			total.Duplicates[kind] += n
		}
		for name, f := range r.Faults {
			t := total.Faults[name]
			if t == nil {
				t = &figures{}
				total.Faults[name] = t
			}
			t.Times, t.Affected, t.Seconds = t.Times+f.Times, t.Affected+f.Affected, append(t.Seconds, f.Seconds...)
			struck += f.Times
		}
	}
	fmt.Fprintf(w, "%d runs, %d faults, %d tasks, %d complete steps; %d attempts lost, %d reports refused\n", len(s.Runs), struck, total.Tasks, total.Steps, total.Losses, total.Refused)
	fmt.Fprintf(w, "effects beyond the first: transactional %d, ruby %d, go %d\n", total.Duplicates["transactional"], total.Duplicates["ruby"], total.Duplicates["go"])
	if len(total.Broken) == 0 {
		fmt.Fprintln(w, "promises broken: none")
	} else {
		fmt.Fprintf(w, "promises broken: %d\n", len(total.Broken))
		for _, b := range total.Broken {
			fmt.Fprintln(w, "-", b)
		}
	}
	fmt.Fprintln(w, "\n| fault | times | measured | p50 s | p99 s | max s |\n|---|---|---|---|---|---|")
	for _, name := range slices.Sorted(maps.Keys(total.Faults)) {
		f := total.Faults[name]
		slices.Sort(f.Seconds)
		at := func(q float64) string {
			if len(f.Seconds) == 0 {
				return "–"
			}
			return fmt.Sprintf("%.2f", f.Seconds[int(q*float64(len(f.Seconds)-1))])
		}
		fmt.Fprintf(w, "| %s | %d | %d | %s | %s | %s |\n", name, f.Times, f.Affected, at(0.5), at(0.99), at(1))
	}
}
