package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/store"
)

func (a *app) explainCommand() *cobra.Command {
	return &cobra.Command{
		Use: "explain TASK", Short: "Say why a task is where it is, what it waits for, and what would move it", Args: argsExactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			id, err := parseID(args[0], "task")
			if err != nil {
				return err
			}
			return a.withStore(c.Context(), func(s *store.Store) error {
				e, err := s.Explain(c.Context(), id)
				if err != nil {
					return err
				}
				x := explain(e, time.Now())
				if a.output == "json" {
					return a.printJSON(x)
				}
				a.printExplanation(x)
				return nil
			})
		},
	}
}

// explained is what `tasker explain` prints.
type explained struct {
	*store.TaskSummary
	Explanation string            `json:"explanation"`
	Until       *time.Time        `json:"until"` // when something happens by itself, where that is known
	Commands    []move            `json:"commands"`
	Steps       []store.Readiness `json:"steps"`
	DeadLetter  *store.DeadLetter `json:"dead_letter"` // its open entry
}

// move is a command that would move the task, and what it would do.
type move struct {
	Command string `json:"command"`
	Does    string `json:"does"`
}

// The order in which a paragraph tells what holds a task: what goes on, what
// nothing but an operator mends, what only takes time.
var tellingOrder = []store.Reason{
	store.ReasonRunning, store.ReasonEnqueued,
	store.ReasonNoProcessAlive, store.ReasonNoHandlerAlive, store.ReasonNoWorkerAlive,
	store.ReasonAttemptsExhausted, store.ReasonFailed, store.ReasonFailFast,
	store.ReasonPaused, store.ReasonScheduled, store.ReasonBackoff, store.ReasonGatePaused, store.ReasonLimited, store.ReasonReady, store.ReasonAtLimit,
	store.ReasonDependencies, store.ReasonBlocked,
}

func explain(e *store.Explanation, now time.Time) *explained {
	by := map[store.Reason][]*store.Readiness{}
	x := &explained{TaskSummary: e.Task, Commands: []move{}, Steps: e.Steps, DeadLetter: e.DeadLetter}
	var cancelled []*store.Readiness
	for i := range e.Steps {
		s := &e.Steps[i]
		by[s.Reason] = append(by[s.Reason], s)
		if s.State == tasker.StepCancelled {
			cancelled = append(cancelled, s)
		}
		if s.Reason == store.ReasonBackoff && s.RetryAt != nil && (x.Until == nil || s.RetryAt.Before(*x.Until)) {
			x.Until = s.RetryAt
		}
	}
	if len(by[store.ReasonScheduled]) > 0 {
		x.Until = e.RunAt
	}
	x.Commands = append(x.Commands, moves(e, by)...)

	sentences := []string{opening(e, now)}
	if d := e.DeadLetter; d != nil {
		sentences = append(sentences, fmt.Sprintf("It is a dead letter (%s) since %s.", d.Reason, moment(d.FoundAt)))
	}
	if !e.Task.State.Finished() || e.Task.State == tasker.TaskError {
		for _, reason := range tellingOrder {
			if steps := by[reason]; len(steps) > 0 {
				sentences = append(sentences, sentence(steps))
			}
		}
		if len(cancelled) > 0 {
			sentences = append(sentences, sentence(cancelled))
		}
	}
	if x.Until != nil {
		sentences = append(sentences, fmt.Sprintf("Nothing is expected before %s.", moment(*x.Until)))
	}
	x.Explanation = strings.Join(sentences, " ")
	if len(by[store.ReasonRunning])+len(by[store.ReasonReady])+len(by[store.ReasonEnqueued]) > 0 && x.Until != nil {
		// Something else may happen earlier: no promise.
		x.Until = nil
		x.Explanation = strings.Join(sentences[:len(sentences)-1], " ")
	}
	return x
}

// opening says where the task is.
func opening(e *store.Explanation, now time.Time) string {
	t := e.Task
	name := fmt.Sprintf("Task %d (%s/%s@%s)", t.TaskID, t.Namespace, t.Name, t.Version)
	steps := fmt.Sprintf("%d of %s done", t.StepsSatisfied, plural(t.StepsTotal, "step"))
	switch t.State {
	case tasker.TaskComplete:
		return fmt.Sprintf("%s is complete: %s, %s after it was enqueued. Nothing is left to do.", name, steps, duration(t.CreatedAt, t.FinishedAt))
	case tasker.TaskCancelled:
		return fmt.Sprintf("%s was cancelled with %s. Nothing moves it any more; enqueue a new task if its work is wanted.", name, steps)
	case tasker.TaskResolvedManually:
		return fmt.Sprintf("%s was resolved by an operator with %s. Nothing moves it any more.", name, steps)
	case tasker.TaskError:
		return fmt.Sprintf("%s has failed with %s, and nothing in it can move by itself.", name, steps)
	case tasker.TaskPending:
		if e.RunAt != nil && e.RunAt.After(now) {
			return fmt.Sprintf("%s is enqueued for later: it starts in %s.", name, round(e.RunAt.Sub(now)))
		}
		return fmt.Sprintf("%s is pending: no worker has taken it yet.", name)
	case tasker.TaskInProgress:
	}
	held := "no worker holds it at the moment"
	if e.Owned {
		held = "a worker holds it"
	}
	if t.ExecutionStatus == "processing" {
		held = "attempts are out"
	}
	return fmt.Sprintf("%s is in progress with %s; %s.", name, steps, held)
}

// sentence tells of steps that have a reason in common: of the first in full,
// of the others by name.
func sentence(steps []*store.Readiness) string {
	const most = 3
	text := fmt.Sprintf("%s: %s.", steps[0].Name, strings.TrimSuffix(steps[0].Explanation, "."))
	if len(steps) == 1 {
		return text
	}
	var names []string
	for _, s := range steps[1:min(len(steps), most+1)] {
		names = append(names, s.Name)
	}
	more := ""
	if n := len(steps) - 1 - most; n > 0 {
		more = fmt.Sprintf(" and %d more", n)
	}
	return text + fmt.Sprintf(" Likewise (%s): %s%s.", steps[0].Reason, strings.Join(names, ", "), more)
}

// moves lists the commands that would move the task, the most useful first. Of
// many steps with the same trouble, the first stands for all.
func moves(e *store.Explanation, by map[store.Reason][]*store.Readiness) []move {
	var list []move
	add := func(does, command string, args ...any) {
		list = append(list, move{fmt.Sprintf(command, args...), does})
	}
	task := e.Task.TaskID
	open := !e.Task.State.Finished()
	first := func(reasons ...store.Reason) *store.Readiness {
		for _, r := range reasons {
			if len(by[r]) > 0 {
				return by[r][0]
			}
		}
		return nil
	}
	settle := func(s *store.Readiness) {
		add(s.Name+" counts as done without a result, and what depends on it goes on", "tasker step skip %d", s.StepID)
		add(s.Name+" counts as done with this result", "tasker step resolve %d --result JSON", s.StepID)
	}
	if !open && e.Task.State != tasker.TaskError {
		return nil
	}
	if first(store.ReasonNoWorkerAlive, store.ReasonNoHandlerAlive) != nil {
		does := "a worker that takes the task"
		if s := first(store.ReasonNoHandlerAlive); s != nil {
			does = "a worker whose program registers the handler that " + s.Name + " needs"
		}
		add(does, "tasker worker")
	}
	if s := first(store.ReasonNoProcessAlive); s != nil {
		add("a Sidekiq process of the app, with the gem tasker_core, that takes the queue of "+s.Name, "bundle exec sidekiq")
		settle(s)
	}
	if len(by[store.ReasonPaused]) > 0 {
		add("ends the pause", "tasker task resume %d", task)
	}
	if s := first(store.ReasonGatePaused); s != nil && s.GateScope != nil && s.GateName != nil {
		add("ends the pause that holds "+s.Name, "tasker gate resume %s %s", *s.GateScope, *s.GateName)
	}
	if s := first(store.ReasonLimited); s != nil {
		add("shows the limit that "+s.Name+" stands in line at; tasker gate limit changes it", "tasker gate list")
	}
	if len(by[store.ReasonScheduled]) > 0 {
		add("starts it at once", "tasker task run-now %d", task)
	}
	if s := first(store.ReasonAttemptsExhausted, store.ReasonFailed); s != nil {
		add("runs "+s.Name+" again, with all its attempts", "tasker step retry %d", s.StepID)
		settle(s)
		if e.Task.State == tasker.TaskError {
			add("runs all failed steps again", "tasker task retry %d", task)
		}
	}
	if s := first(store.ReasonBackoff); s != nil {
		add("begins the next attempt of "+s.Name+" at once", "tasker step retry %d", s.StepID)
	}
	if e.Task.State == tasker.TaskError {
		add("closes the task: its work was done by other means", "tasker task resolve %d", task)
	}
	if e.DeadLetter != nil {
		add("takes it off the list of dead letters, and leaves it as it is", "tasker dead-letter acknowledge %d", task)
	}
	add("stops it for good", "tasker task cancel %d", task)
	return list
}

func (a *app) printExplanation(x *explained) {
	fprintf(a.stdout, "%s\n\n", x.Explanation)
	var t table
	t.add("step", "id", "state", "why", "in words")
	for i := range x.Steps {
		s := &x.Steps[i]
		t.add(s.Name, strconv.FormatInt(s.StepID, 10), string(s.State), string(s.Reason), shorten(s.Explanation, 120))
	}
	t.print(a.stdout)
	if len(x.Commands) == 0 {
		return
	}
	fprintln(a.stdout)
	var c table
	c.add("command", "does")
	for _, m := range x.Commands {
		c.add(m.Command, m.Does)
	}
	c.print(a.stdout)
}
