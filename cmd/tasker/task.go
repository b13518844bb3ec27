package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/store"
)

func (a *app) taskCommand() *cobra.Command {
	c := group(&cobra.Command{Use: "task", Short: "Enqueue, list, show, watch and steer tasks"})
	c.AddCommand(a.taskEnqueueCommand(), a.taskListCommand(), a.taskShowCommand(), a.taskWatchCommand())
	c.AddCommand(a.taskVerbs()...)
	return c
}

func (a *app) taskEnqueueCommand() *cobra.Command {
	t := store.NewTask{}
	var contextArg, delay, deadline string
	command := &cobra.Command{
		Use:   "enqueue NAMESPACE/NAME[@VERSION]",
		Short: "Enqueue a task",
		Example: `  tasker task enqueue billing/settle_invoice --context '{"invoice_id": 7}'
  tasker task enqueue billing/settle_invoice --context @invoice.json --key invoice-7`,
		Args: argsExactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			var err error
			if t.Namespace, t.Name, t.Version, err = parseName(args[0]); err != nil {
				return err
			}
			if c.Flags().Changed("priority") && (t.Priority < 1 || t.Priority > 4) {
				return &usageError{fmt.Errorf("--priority is a number from 1, which goes first, to 4, not %d", t.Priority)}
			}
			if t.RefuseDuplicate && t.IdempotencyKey == "" {
				return &usageError{errors.New("--refuse-duplicate needs a --key")}
			}
			if t.Context, err = a.readContext(contextArg); err != nil {
				return err
			}
			if delay != "" {
				d, err := time.ParseDuration(delay)
				if err != nil || d < 0 {
					return &usageError{fmt.Errorf("--in %q is no delay: it looks like 90s, 10m or 2h", delay)}
				}
				t.RunAt = new(time.Now().Add(d))
			}
			if deadline != "" {
				d, err := time.ParseDuration(deadline)
				if err != nil || d <= 0 {
					return &usageError{fmt.Errorf("--deadline %q is no time from now: it looks like 90s, 10m or 2h", deadline)}
				}
				t.Deadline = new(time.Now().Add(d))
			}
			return a.withStore(c.Context(), func(s *store.Store) error {
				id, err := s.Enqueue(c.Context(), &t)
				if err != nil {
					return err
				}
				if a.output == "json" {
					return a.printJSON(map[string]int64{"task_id": id})
				}
				fprintf(a.stdout, "task %d\n", id)
				return nil
			})
		},
	}
	flags := command.Flags()
	flags.StringVar(&contextArg, "context", "{}", "a JSON object, @FILE, or - for standard input")
	flags.IntVar(&t.Priority, "priority", 0, "1 (goes first) to 4; default 2")
	flags.StringVar(&delay, "in", "", "start after this long, such as 10m")
	flags.StringVar(&deadline, "deadline", "", "fail if it has not ended this long from now, such as 2h")
	flags.Int64Var(&t.ParentTaskID, "parent", 0, "the task that this one belongs to")
	flags.StringVar(&t.IdempotencyKey, "key", "", "idempotency key: a second task with it is not made")
	flags.BoolVar(&t.RefuseDuplicate, "refuse-duplicate", false, "fail when the key is taken, instead of giving the task that has it")
	flags.StringVar(&t.CorrelationID, "correlation-id", "", "id that links this task to what caused it")
	flags.StringSliceVar(&t.Tags, "tag", nil, "tag; may be given more than once")
	flags.StringSliceVar(&t.BypassSteps, "bypass", nil, "step to skip from the start; may be given more than once")
	flags.StringVar(&t.Initiator, "initiator", "", "who asked for it")
	flags.StringVar(&t.Reason, "reason", "", "why")
	return command
}

// readContext reads and checks the context, so that a mistake gets a message
// that names the place.
func (a *app) readContext(arg string) (json.RawMessage, error) {
	text, source := []byte(arg), "--context"
	var err error
	if arg == "-" {
		source = "standard input"
		text, err = io.ReadAll(io.LimitReader(a.stdin, tasker.MaxContextBytes+1))
	} else if file, ok := strings.CutPrefix(arg, "@"); ok {
		source = file
		text, err = os.ReadFile(file)
	}
	if err != nil {
		return nil, fmt.Errorf("read the context: %w", err)
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(text, &object); err != nil {
		var kind *json.UnmarshalTypeError
		if errors.As(err, &kind) {
			return nil, &store.RefusedError{Message: fmt.Sprintf("%s: the context of a task must be a JSON object, not %s", source, kind.Value)}
		}
		return nil, &store.RefusedError{Message: fmt.Sprintf("%s: the context of a task must be a JSON object: %v", source, err)}
	}
	if object == nil {
		return nil, &store.RefusedError{Message: source + ": the context of a task must be a JSON object, not null"}
	}
	return text, nil
}

// taskStates are the words that --state takes.
var taskStates = []string{
	string(tasker.TaskPending), string(tasker.TaskInProgress), string(tasker.TaskComplete),
	string(tasker.TaskError), string(tasker.TaskCancelled), string(tasker.TaskResolvedManually),
}

func (a *app) taskListCommand() *cobra.Command {
	var f store.TaskFilter
	var state, name string
	command := &cobra.Command{
		Use: "list", Short: "List tasks, the newest first", Args: argsExactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if name != "" {
				var err error
				if f.Namespace, f.Name, _, err = parseName(name); err != nil {
					return err
				}
			}
			f.State = tasker.TaskState(state)
			if state != "" && !slices.Contains(taskStates, state) {
				return &usageError{fmt.Errorf("--state %q is no state of a task; they are %s", state, strings.Join(taskStates, ", "))}
			}
			if f.Limit < 1 || f.Limit > 1000 {
				return &usageError{fmt.Errorf("--limit is a number from 1 to 1000, not %d", f.Limit)}
			}
			return a.withStore(c.Context(), func(s *store.Store) error {
				tasks, err := s.Tasks(c.Context(), f)
				if err != nil {
					return err
				}
				if len(tasks) == 0 { // of which there are none, or whose name is spelt wrong
					if err := knownTemplate(c.Context(), s, f.Namespace, f.Name); err != nil {
						return err
					}
				}
				if a.output == "json" {
					return a.printJSON(tasks)
				}
				var t table
				t.add("task", "template", "state", "status", "steps", "attempts", "created", "duration")
				for i := range tasks {
					x := &tasks[i]
					t.add(strconv.FormatInt(x.TaskID, 10), x.Namespace+"/"+x.Name+"@"+x.Version, string(x.State), x.ExecutionStatus,
						fmt.Sprintf("%d/%d", x.StepsSatisfied, x.StepsTotal), strconv.Itoa(x.Attempts),
						moment(x.CreatedAt), duration(x.CreatedAt, x.FinishedAt))
				}
				t.print(a.stdout)
				return nil
			})
		},
	}
	flags := command.Flags()
	flags.StringVar(&state, "state", "", "only tasks in this state")
	flags.StringVar(&name, "template", "", "only tasks of this template: NAMESPACE/NAME")
	flags.Int64Var(&f.Before, "before", 0, "only tasks older than this id: the next page")
	flags.IntVar(&f.Limit, "limit", 20, "how many")
	return command
}

// duration is how long something took, or has been going on.
func duration(from time.Time, to *time.Time) string {
	if to == nil {
		return round(time.Since(from)).String() + " …"
	}
	return round(to.Sub(from)).String()
}

func (a *app) taskShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show TASK", Short: "Show a task and its steps", Args: argsExactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			id, err := parseID(args[0], "task")
			if err != nil {
				return err
			}
			return a.withStore(c.Context(), func(s *store.Store) error {
				task, err := s.Task(c.Context(), id)
				if err != nil {
					return err
				}
				steps, err := s.StepsOf(c.Context(), id)
				if err != nil {
					return err
				}
				if a.output == "json" {
					return a.printJSON(struct {
						*store.TaskSummary
						Steps []store.Step `json:"steps"`
					}{task, steps})
				}
				a.printTask(task, steps)
				return nil
			})
		},
	}
}

// parseID reads the id of a task or a step.
func parseID(arg, object string) (int64, error) {
	id, err := strconv.ParseInt(arg, 10, 64)
	if err != nil || id < 1 {
		hint := ""
		if object == "step" {
			hint = "; tasker task show TASK lists them"
		}
		return 0, &usageError{fmt.Errorf("%q is no %s id: it is a number such as 7%s", arg, object, hint)}
	}
	return id, nil
}

func (a *app) printTask(task *store.TaskSummary, steps []store.Step) {
	fprintf(a.stdout, "task %d  %s/%s@%s\n", task.TaskID, task.Namespace, task.Name, task.Version)
	fprintf(a.stdout, "%s (%s), %d of %d steps, %s\n\n", task.State, task.ExecutionStatus, task.StepsSatisfied, task.StepsTotal,
		duration(task.CreatedAt, task.FinishedAt))
	var t table
	t.add("step", "id", "state", "attempts", "took", "handler", "after", "last failure")
	for i := range steps {
		s := &steps[i]
		took, failure := "-", "-"
		if s.StartedAt != nil {
			took = duration(*s.StartedAt, s.FinishedAt)
		}
		if s.State == tasker.StepWaitingForRetry && s.RetryAt != nil {
			took = "again in " + round(time.Until(*s.RetryAt)).String()
		}
		if f := failureOf(s.Error); f != nil {
			failure = shorten(f.Class+": "+f.Message, 40)
		}
		attempts := fmt.Sprintf("%d/%d", s.Attempts-s.Losses, s.Limit)
		if s.Losses > 0 {
			attempts += fmt.Sprintf(" +%d lost", s.Losses)
		}
		t.add(s.Name, strconv.FormatInt(s.StepID, 10), string(s.State), attempts, took, s.Handler, firstOf(strings.Join(s.DependsOn, ", "), "-"), failure)
	}
	t.print(a.stdout)
	for i := range steps {
		if f := failureOf(steps[i].Error); f != nil {
			code := ""
			if f.Code != "" {
				code = " (" + f.Code + ")"
			}
			fprintf(a.stdout, "\n%s, attempt %d%s\n  %s: %s\n", steps[i].Name, f.Attempt, code, f.Class, indented(f.Message))
		}
	}
}

func failureOf(doc json.RawMessage) *tasker.Failure {
	var f tasker.Failure
	if len(doc) == 0 || json.Unmarshal(doc, &f) != nil {
		return nil
	}
	return &f
}

func shorten(s string, n int) string {
	s, _, _ = strings.Cut(s, "\n")
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

func (a *app) taskWatchCommand() *cobra.Command {
	var interval, timeout time.Duration
	command := &cobra.Command{
		Use: "watch TASK", Short: "Follow a task until it is finished; fails unless it completes", Args: argsExactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			id, err := parseID(args[0], "task")
			if err != nil {
				return err
			}
			return a.withStore(c.Context(), func(s *store.Store) error { return a.watch(c, s, id, interval, timeout) })
		},
	}
	command.Flags().DurationVar(&interval, "interval", 200*time.Millisecond, "how often to look")
	command.Flags().DurationVar(&timeout, "timeout", 0, "give up after so long; 0: never")
	return command
}

func (a *app) watch(c *cobra.Command, s *store.Store, id int64, interval, timeout time.Duration) error {
	seen := map[int64]string{}
	deadline := time.Now().Add(timeout)
	for {
		task, err := s.Task(c.Context(), id)
		if err != nil {
			return err
		}
		steps, err := s.StepsOf(c.Context(), id)
		if err != nil {
			return err
		}
		for i := range steps {
			x := &steps[i]
			now := fmt.Sprintf("%s (attempt %d)", x.State, x.Attempts)
			if x.State != tasker.StepPending && seen[x.StepID] != now && a.output == "text" {
				line := fmt.Sprintf("%s  %s: %s", time.Now().Format("15:04:05.000"), x.Name, now)
				if f := failureOf(x.Error); f != nil && x.State != tasker.StepComplete {
					line += "  " + shorten(f.Class+": "+f.Message, 100)
				}
				fprintln(a.stdout, line)
			}
			seen[x.StepID] = now
		}
		if task.State.Finished() {
			if a.output == "json" {
				if err := a.printJSON(task); err != nil {
					return err
				}
			} else {
				fprintf(a.stdout, "%s  task %d: %s after %s\n", time.Now().Format("15:04:05.000"), id, task.State, duration(task.CreatedAt, task.FinishedAt))
			}
			if task.State != tasker.TaskComplete {
				return fmt.Errorf("task %d ended as %s; see: tasker task show %d", id, task.State, id)
			}
			return nil
		}
		if timeout > 0 && time.Now().After(deadline) {
			return fmt.Errorf("task %d is still %s (%s) after %s", id, task.State, task.ExecutionStatus, timeout)
		}
		select {
		case <-time.After(interval):
		case <-c.Context().Done():
			return fmt.Errorf("stopped watching task %d, which is %s", id, task.State)
		}
	}
}
