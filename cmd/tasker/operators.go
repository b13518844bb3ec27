package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/user"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/taskerhq/tasker/store"
)

// verb is one thing that operators do to a task or a step.
type verb struct {
	use, short, done string
	do               func(ctx context.Context, s *store.Store, id int64, by store.Operator) error
}

func (a *app) taskVerbs() []*cobra.Command {
	retry := a.retryCommand("TASK", verb{"retry", "Run the failed steps of a task in error again; what has finished stays finished", "goes on",
		nil}, func(ctx context.Context, s *store.Store, id int64, newContext json.RawMessage, by store.Operator) error {
		return s.RetryTask(ctx, id, newContext, by)
	})

	priority := a.verbCommand("TASK", verb{"priority", "Change the priority of an open task", "has its new priority", nil})
	priority.Use, priority.Args = "priority TASK 1|2|3|4", argsExactly(2)
	priority.RunE = func(c *cobra.Command, args []string) error {
		n, err := strconv.Atoi(args[1])
		if err != nil {
			return &usageError{fmt.Errorf("%q is no priority: it is a number from 1, which goes first, to 4", args[1])}
		}
		return a.runVerb(c, args[0], "has priority "+args[1], func(ctx context.Context, s *store.Store, id int64, by store.Operator) error {
			return s.SetTaskPriority(ctx, id, n, by)
		})
	}
	return []*cobra.Command{
		a.verbCommand("TASK", verb{"cancel", "Stop a task for good; handlers that run are told", "is cancelled",
			func(ctx context.Context, s *store.Store, id int64, by store.Operator) error {
				return s.CancelTask(ctx, id, by)
			}}),
		retry,
		a.verbCommand("TASK", verb{"resolve", "Declare a task in error done: somebody did its work by other means", "is resolved",
			func(ctx context.Context, s *store.Store, id int64, by store.Operator) error {
				return s.ResolveTask(ctx, id, by)
			}}),
		a.verbCommand("TASK", verb{"pause", "Keep a task from starting attempts", "is paused",
			func(ctx context.Context, s *store.Store, id int64, by store.Operator) error {
				return s.PauseTask(ctx, id, by)
			}}),
		a.verbCommand("TASK", verb{"resume", "End a pause", "goes on",
			func(ctx context.Context, s *store.Store, id int64, by store.Operator) error {
				return s.ResumeTask(ctx, id, by)
			}}),
		a.verbCommand("TASK", verb{"run-now", "Start a task that was enqueued for later, and attempts that wait for their retry", "runs now",
			func(ctx context.Context, s *store.Store, id int64, by store.Operator) error {
				return s.RunTaskNow(ctx, id, by)
			}}),
		priority,
	}
}

func (a *app) stepCommand() *cobra.Command {
	c := group(&cobra.Command{Use: "step", Short: "Retry, skip or resolve a step by hand"})
	var result string
	resolve := a.verbCommand("STEP", verb{"resolve", "Settle a step with a given result; steps behind it may start", "is resolved",
		func(ctx context.Context, s *store.Store, id int64, by store.Operator) error {
			if !json.Valid([]byte(result)) {
				return &store.RefusedError{Message: "--result is not JSON", Hint: `a string needs quotes of its own: '"text"'`}
			}
			return s.ResolveStep(ctx, id, json.RawMessage(result), by)
		}})
	resolve.Flags().StringVar(&result, "result", "null", "the result, as JSON")
	c.AddCommand(
		a.retryCommand("STEP", verb{"retry", "Run a step in error again, or one that waits for its retry at once", "runs again", nil},
			func(ctx context.Context, s *store.Store, id int64, newContext json.RawMessage, by store.Operator) error {
				return s.RetryStep(ctx, id, newContext, by)
			}),
		a.verbCommand("STEP", verb{"skip", "Settle a step without a result; steps behind it may start", "is skipped",
			func(ctx context.Context, s *store.Store, id int64, by store.Operator) error {
				return s.SkipStep(ctx, id, by)
			}}),
		resolve)
	return c
}

// retryCommand is a verb that may bring another context for the task.
func (a *app) retryCommand(object string, v verb, do func(context.Context, *store.Store, int64, json.RawMessage, store.Operator) error) *cobra.Command {
	var newContext string
	v.do = func(ctx context.Context, s *store.Store, id int64, by store.Operator) error {
		var doc json.RawMessage
		if newContext != "" {
			var err error
			if doc, err = a.readContext(newContext); err != nil {
				return err
			}
		}
		return do(ctx, s, id, doc, by)
	}
	c := a.verbCommand(object, v)
	c.Flags().StringVar(&newContext, "context", "", "the task goes on with this context: a JSON object, @FILE, or - for standard input")
	return c
}

func (a *app) verbCommand(object string, v verb) *cobra.Command {
	c := &cobra.Command{
		Use: v.use + " " + object, Short: v.short, Args: argsExactly(1),
		RunE: func(c *cobra.Command, args []string) error { return a.runVerb(c, args[0], v.done, v.do) },
	}
	operatorFlags(c)
	return c
}

func operatorFlags(c *cobra.Command) {
	c.Flags().String("by", "", "who does it (default: the user of this shell)")
	c.Flags().String("reason", "", "why; recorded in the event")
}

func operatorOf(c *cobra.Command) store.Operator {
	by := store.Operator{Name: c.Flag("by").Value.String(), Reason: c.Flag("reason").Value.String()}
	if by.Name == "" {
		by.Name = os.Getenv("SUDO_USER")
		if u, err := user.Current(); err == nil && by.Name == "" {
			by.Name = u.Username
		}
	}
	return by
}

func (a *app) runVerb(c *cobra.Command, arg, done string, do func(context.Context, *store.Store, int64, store.Operator) error) error {
	object := "task"
	if c.Parent() != nil && c.Parent().Name() == "step" {
		object = "step"
	}
	id, err := parseID(arg, object)
	if err != nil {
		return err
	}
	by := operatorOf(c)
	return a.withStore(c.Context(), func(s *store.Store) error {
		if err := do(c.Context(), s, id, by); err != nil {
			return err
		}
		if a.output == "json" {
			return a.printJSON(map[string]any{object + "_id": id, "done": c.Name(), "by": by.Name})
		}
		fprintf(a.stdout, "%s %d %s\n", object, id, done)
		return nil
	})
}
