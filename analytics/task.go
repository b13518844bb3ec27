package analytics

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/dag"
	"github.com/taskerhq/tasker/store"
)

// Task is where the time of one task went, and how long it may take yet.
type Task struct {
	store.TaskSummary
	Elapsed float64 `json:"elapsed_seconds"` // from its start, or else its insert, to its end or to now

	// Path is the chain of steps that the task's time is made of: each waited for the
	// one before it. The shares add up to 1 but for what passed before the first and after
	// the last. In a task that is open it is the one that ends last so far.
	Path []Link `json:"critical_path"`

	// Work is how long its attempts ran, all together. On one processor it would take
	// that long; side by side as far as dependencies allow, Shortest.
	Work     float64 `json:"work_seconds"`
	Shortest float64 `json:"shortest_seconds"`
	Possible float64 `json:"parallelism_possible"` // Work by Shortest; 0: nothing has run
	Reached  float64 `json:"parallelism_reached"`  // Work by Elapsed

	Steps  []Course `json:"steps"`
	Errors []Chain  `json:"error_chains"`

	// Remaining is an estimate from how long the steps took in the last day: the
	// heaviest path of what is left. Nil: it has ended, is paused, or nothing is known.
	Remaining *float64 `json:"remaining_seconds"`
	Unknown   []string `json:"unknown_steps,omitempty"` // that no history tells of, and count as 0
}

// Link is a step of the critical path.
type Link struct {
	Step    string  `json:"step"`
	Seconds float64 `json:"seconds"` // from when it was ready until it ended
	Share   float64 `json:"share"`   // of Elapsed
	Wait    float64 `json:"wait_seconds"`
	Run     float64 `json:"run_seconds"`
	Backoff float64 `json:"backoff_seconds"`
}

// Course is what became of a step.
type Course struct {
	Step     string           `json:"step"`
	State    tasker.StepState `json:"state"`
	Attempts int              `json:"attempts"`
	ReadyAt  *time.Time       `json:"ready_at"` // when its dependencies had ended; nil: they have not
	EndedAt  *time.Time       `json:"ended_at"`
	Wait     float64          `json:"wait_seconds"`    // until its attempts began, but for backoff
	Run      float64          `json:"run_seconds"`     // of all its attempts
	Backoff  float64          `json:"backoff_seconds"` // after attempts that failed, until the next was due or began
}

// Chain is a step that failed, how, and what that holds up.
type Chain struct {
	Step    string    `json:"step"`
	Failed  []Failed  `json:"attempts"`
	Ended   bool      `json:"for_good"`
	Blocked []string  `json:"blocks"` // all that depends on it, directly or not, and has not ended
	Last    time.Time `json:"last_at"`
}

// Failed is an attempt that failed.
type Failed struct {
	Attempt int    `json:"attempt"`
	Class   string `json:"class"`
	Message string `json:"message"`
}

// TaskOf reads the course of a task. store.ErrNotFound: there is none with this id.
func TaskOf(ctx context.Context, s *store.Store, id int64) (*Task, error) {
	h, err := s.History(ctx, id)
	if err != nil {
		return nil, err
	}
	var figures []store.Figure
	if h.Task.FinishedAt == nil {
		if figures, err = s.Figures(ctx, store.Scope{Namespace: h.Task.Namespace, Name: h.Task.Name, Period: 24 * time.Hour}); err != nil {
			return nil, err
		}
	}
	graph, err := shape(h.Steps)
	if err != nil {
		return nil, fmt.Errorf("task %d: %w", id, err)
	}
	return analyse(h, graph, figures), nil
}

// shape is the graph of a task's steps, which come by position.
func shape(steps []store.StepHistory) (*dag.Graph, error) {
	templates := make([]tasker.StepTemplate, len(steps))
	for i := range steps {
		templates[i].Name = steps[i].Name
		for _, d := range steps[i].DependsOn {
			templates[i].DependsOn = append(templates[i].DependsOn, steps[d].Name)
		}
	}
	return dag.New(templates)
}

// course is a step while it is looked at.
type course struct {
	*store.StepHistory
	Course
	over bool // it has ended, well or not
}

func analyse(h *store.TaskHistory, graph *dag.Graph, figures []store.Figure) *Task {
	t := &Task{TaskSummary: h.Task, Steps: []Course{}, Errors: []Chain{}, Path: []Link{}}
	begun := h.Task.CreatedAt
	if h.Task.StartedAt != nil {
		begun = *h.Task.StartedAt
	}
	end := h.Now
	if h.Task.FinishedAt != nil {
		end = *h.Task.FinishedAt
	}
	t.Elapsed = max(0, end.Sub(begun).Seconds())

	steps := make([]course, len(h.Steps)) // by position, each after those it depends on
	for _, i := range graph.TopologicalOrder() {
		steps[i] = follow(&h.Steps[i], steps, begun, h.Now)
		t.Work += steps[i].Run
	}
	_, t.Shortest = graph.CriticalPath(func(i int) float64 { return steps[i].Run })
	if t.Shortest > 0 {
		t.Possible = t.Work / t.Shortest
	}
	if t.Elapsed > 0 {
		t.Reached = t.Work / t.Elapsed
	}
	t.Path = path(steps, t.Elapsed)
	for i := range steps {
		t.Steps = append(t.Steps, steps[i].Course)
		if c := chain(steps, graph, i); c != nil {
			t.Errors = append(t.Errors, *c)
		}
	}
	if h.Task.FinishedAt == nil {
		t.estimate(steps, graph, figures, h.Now)
	}
	return t
}

// follow adds up where the time of a step went. What it depends on is in steps already.
func follow(h *store.StepHistory, steps []course, begun, now time.Time) course {
	c := course{StepHistory: h, Course: Course{Step: h.Name, State: h.State, Attempts: h.Attempts}}
	ready := begun
	for _, d := range h.DependsOn {
		if !steps[d].over {
			return c // it can't have begun
		}
		if at := steps[d].Course.EndedAt; at != nil && at.After(ready) {
			ready = *at
		}
	}
	c.ReadyAt = &ready
	// since is from when the time is to be accounted for; as what, say the other two.
	since, backoff, running := ready, false, false
	spend := func(at time.Time) {
		if !at.After(since) {
			return
		}
		d := at.Sub(since).Seconds()
		since = at
		switch {
		case running:
			c.Run += d
		case backoff:
			c.Backoff += d
		default:
			c.Wait += d
		}
	}
	for _, e := range h.Events {
		switch e.Name {
		case tasker.EventStepStarted:
			spend(e.At)
			running, backoff = true, false
		case tasker.EventStepEnqueued:
			spend(e.At)
			running, backoff = false, false // in a queue: no longer waiting for its date
		case tasker.EventStepRetry:
			spend(e.At)
			running, backoff = false, true
		case tasker.EventStepCompleted, tasker.EventStepFailed, tasker.EventStepCancelled, tasker.EventStepSkipped, tasker.EventStepResolved, tasker.EventStepReset:
			spend(e.At)
			running, backoff = false, false
		default: // of no attempt
		}
	}
	switch h.State {
	case tasker.StepComplete, tasker.StepResolvedManually, tasker.StepSkipped, tasker.StepCancelled, tasker.StepError:
		c.over = true
		c.EndedAt = h.FinishedAt
	default:
		spend(now)
	}
	return c
}

// path is the chain that leads to the step that ended last: from each to the one
// it depends on that ended last.
func path(steps []course, elapsed float64) []Link {
	last := -1
	for i := range steps {
		if steps[i].EndedAt != nil && (last < 0 || steps[i].EndedAt.After(*steps[last].EndedAt)) {
			last = i
		}
	}
	links := []Link{}
	for last >= 0 {
		c := &steps[last]
		if c.ReadyAt == nil {
			break
		}
		l := Link{Step: c.Step, Seconds: max(0, c.Course.EndedAt.Sub(*c.ReadyAt).Seconds()), Wait: c.Wait, Run: c.Run, Backoff: c.Backoff}
		if elapsed > 0 {
			l.Share = l.Seconds / elapsed
		}
		links = append(links, l)
		next := -1
		for _, d := range c.DependsOn {
			if at := steps[d].Course.EndedAt; at != nil && (next < 0 || at.After(*steps[next].EndedAt)) {
				next = d
			}
		}
		last = next
	}
	slices.Reverse(links)
	return links
}

func chain(steps []course, graph *dag.Graph, i int) *Chain {
	c := Chain{Step: steps[i].Step, Failed: []Failed{}, Blocked: []string{}, Ended: steps[i].StepHistory.State == tasker.StepError}
	for _, e := range steps[i].Events {
		if e.Name == tasker.EventStepRetry || e.Name == tasker.EventStepFailed {
			c.Failed = append(c.Failed, Failed{e.Attempt, e.Class, e.Message})
			c.Last = e.At
		}
	}
	if len(c.Failed) == 0 {
		return nil
	}
	seen := map[int]bool{}
	var spread func(i int)
	spread = func(i int) {
		for _, d := range graph.Dependents(i) {
			if !seen[d] {
				seen[d] = true
				if !steps[d].over {
					c.Blocked = append(c.Blocked, steps[d].Step)
				}
				spread(d)
			}
		}
	}
	if !steps[i].over || c.Ended {
		spread(i)
	}
	slices.Sort(c.Blocked)
	return &c
}

// estimate adds up what is left, by what it took others.
func (t *Task) estimate(steps []course, graph *dag.Graph, figures []store.Figure, now time.Time) {
	if t.ExecutionStatus == "paused" {
		return
	}
	type took struct{ wait, run float64 }
	history := map[string]took{}
	for _, f := range figures {
		h := history[f.Step]
		switch f.Measure {
		case store.MeasureWait:
			h.wait = f.P50
		case store.MeasureRun:
			h.run = f.P50
		case store.MeasureTotal, store.MeasureBackoff:
			continue
		}
		history[f.Step] = h
	}
	known := false
	_, longest := graph.CriticalPath(func(i int) float64 {
		c := &steps[i]
		if c.over {
			return 0
		}
		h, there := history[c.Step]
		if there {
			known = true
		} else {
			t.Unknown = append(t.Unknown, c.Step)
		}
		switch c.StepHistory.State {
		case tasker.StepInProgress:
			if c.StartedAt == nil {
				return 0
			}
			return h.run - now.Sub(*c.StartedAt).Seconds()
		case tasker.StepWaitingForRetry:
			if c.RetryAt == nil {
				return h.run
			}
			return max(0, c.RetryAt.Sub(now).Seconds()) + h.run
		case tasker.StepEnqueued:
			return max(0, h.wait-c.Wait) + h.run
		default:
			return h.wait + h.run
		}
	})
	if known {
		t.Remaining = &longest
	}
	slices.SortFunc(t.Unknown, cmp.Compare[string])
}
