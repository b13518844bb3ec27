package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/taskerhq/tasker/store"
)

func (a *app) deadLetterCommand() *cobra.Command {
	c := group(&cobra.Command{Use: "dead-letter", Short: "Tasks that stand still or have failed, and what was done about it"})
	c.AddCommand(a.deadLetterListCommand(), a.deadLetterShowCommand(),
		a.verbCommand("TASK", verb{"acknowledge", "Take a task off the list and leave it as it is", "is off the list",
			func(ctx context.Context, s *store.Store, id int64, by store.Operator) error {
				return s.AcknowledgeDeadLetter(ctx, id, by)
			}}))
	return c
}

// deadLetterReasons are the words that --reason takes.
var deadLetterReasons = []string{
	string(store.DeadLetterFailed), string(store.StalePending), string(store.StaleInProgress), string(store.StaleWaiting), string(store.StaleRunning),
}

func (a *app) deadLetterListCommand() *cobra.Command {
	var f store.DeadLetterFilter
	var reason string
	command := &cobra.Command{
		Use: "list", Short: "List dead letters, the newest first", Args: argsExactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			f.Reason = store.DeadLetterReason(reason)
			if reason != "" && !slices.Contains(deadLetterReasons, reason) {
				return &usageError{fmt.Errorf("--reason %q is no reason of a dead letter; they are %s", reason, strings.Join(deadLetterReasons, ", "))}
			}
			if f.Limit < 1 || f.Limit > 1000 {
				return &usageError{fmt.Errorf("--limit is a number from 1 to 1000, not %d", f.Limit)}
			}
			return a.withStore(c.Context(), func(s *store.Store) error {
				list, err := s.DeadLetters(c.Context(), f)
				if err != nil {
					return err
				}
				if a.output == "json" {
					return a.printJSON(list)
				}
				var t table
				head := []string{"id", "task", "template", "state", "reason", "age", "why"}
				if f.All {
					head = append(head, "resolution")
				}
				t.add(head...)
				for i := range list {
					d := &list[i]
					cells := []string{
						strconv.FormatInt(d.ID, 10), strconv.FormatInt(d.TaskID, 10), templateOf(d), stateOf(d), string(d.Reason),
						seconds(d.Age), shorten(d.Detail, 100),
					}
					if f.All {
						cells = append(cells, firstOf(resolutionOf(d), "-"))
					}
					t.add(cells...)
				}
				t.print(a.stdout)
				return nil
			})
		},
	}
	flags := command.Flags()
	flags.BoolVar(&f.All, "all", false, "also those that are resolved")
	flags.StringVar(&reason, "reason", "", "only those with this reason: "+strings.Join(deadLetterReasons, ", "))
	flags.Int64Var(&f.Before, "before", 0, "only entries with an id below this one: the next page")
	flags.IntVar(&f.Limit, "limit", 20, "how many")
	return command
}

func (a *app) deadLetterShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show TASK", Short: "Show the dead letters of a task, open and resolved", Args: argsExactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			id, err := parseID(args[0], "task")
			if err != nil {
				return err
			}
			return a.withStore(c.Context(), func(s *store.Store) error {
				const most = 1000
				list, err := s.DeadLetters(c.Context(), store.DeadLetterFilter{TaskID: id, All: true, Limit: most})
				if err != nil {
					return err
				}
				if len(list) == 0 {
					return fmt.Errorf("dead letter of task %d: %w; see: tasker explain %d", id, store.ErrNotFound, id)
				}
				if a.output == "json" {
					return a.printJSON(list)
				}
				for i := range list {
					d := &list[i]
					fprintf(a.stdout, "task %d  %s  %s  since %s, for %s\n  %s\n  %s\n", d.TaskID, templateOf(d), d.Reason,
						moment(d.Since), seconds(d.Age), d.Detail,
						firstOf(resolutionOf(d), fmt.Sprintf("open; what would move it: tasker explain %d", d.TaskID)))
				}
				return nil
			})
		},
	}
}

func templateOf(d *store.DeadLetter) string {
	if d.Name == nil {
		return "(deleted)"
	}
	return *d.Namespace + "/" + *d.Name + "@" + *d.Version
}

func stateOf(d *store.DeadLetter) string {
	if d.State == nil {
		return "-"
	}
	return string(*d.State)
}

// resolutionOf says what became of a dead letter; empty while it is open.
func resolutionOf(d *store.DeadLetter) string {
	if d.Resolution == nil {
		return ""
	}
	text := strings.ReplaceAll(*d.Resolution, "_", " ")
	if d.ResolvedBy != nil {
		text += " by " + *d.ResolvedBy
	}
	if d.Note != nil {
		text += ": " + *d.Note
	}
	return text
}

func seconds(n float64) string { return round(time.Duration(n * float64(time.Second))).String() }
