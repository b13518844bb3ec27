package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/taskerhq/tasker/store"
)

func (a *app) doctorCommand() *cobra.Command {
	var o store.ExamineOptions
	var task, since string
	command := &cobra.Command{
		Use: "doctor", Short: "Hold all that is stored against what is promised, and say what would mend it", Args: argsExactly(0),
		Long: `Checks the database as of one moment: that no task is forgotten, no result was
accepted twice, nothing started too early or too often, that events tell every
transition, and the rest of docs/guarantees.md. It only reads, and may be run
beside working workers.

By default it looks at open tasks and at those that ended within a day; --since
0 looks at everything that is there. A task of five steps takes it about 0.3 ms,
a million of them five minutes, in which it holds a snapshot: on a busy database
look at hours (--since 2h) rather than at all.

Exit code 0: nothing is wrong, though there may be warnings. 1: a promise is
broken; what would mend it is said with each finding.`,
		Example: `  tasker doctor
  tasker doctor --task 4711
  tasker doctor --since 0 -o json`,
		RunE: func(c *cobra.Command, _ []string) error {
			if task != "" {
				id, err := parseID(task, "task")
				if err != nil {
					return err
				}
				o.Task = &id
			} else if since != "0" {
				var err error
				if o.Since, err = age("--since", since); err != nil {
					return err
				}
			}
			if o.Most < 1 || o.Most > 1000 {
				return &usageError{fmt.Errorf("--limit is a number from 1 to 1000, not %d", o.Most)}
			}
			return a.withStore(c.Context(), func(s *store.Store) error { return a.examine(c.Context(), s, o) })
		},
	}
	flags := command.Flags()
	flags.StringVar(&task, "task", "", "this task alone, however long ago it ended")
	flags.StringVar(&since, "since", "24h", "also tasks that ended within that time, such as 7d; 0: all")
	flags.IntVar(&o.Most, "limit", 20, "findings of each check")
	return command
}

func (a *app) examine(ctx context.Context, s *store.Store, o store.ExamineOptions) error {
	if o.Task != nil {
		if _, err := s.Task(ctx, *o.Task); err != nil {
			return err
		}
	}
	if a.output == "text" {
		o.Done = a.printExamined
	}
	all, err := s.Examine(ctx, o)
	if err != nil {
		return err
	}
	if a.output == "json" {
		if err := a.printJSON(all); err != nil {
			return err
		}
	}
	broken, warnings := 0, 0
	for i := range all {
		switch {
		case all[i].Broken():
			broken++
		case len(all[i].Findings) > 0:
			warnings++
		}
	}
	if broken > 0 {
		return fmt.Errorf("%d of %d promises are broken", broken, len(all))
	}
	if a.output == "text" {
		fprintf(a.stdout, "%d checks: no promise is broken, %s\n", len(all), plural(warnings, "warning"))
	}
	return nil
}

// printExamined tells of one check when it was made.
func (a *app) printExamined(e store.Examined) {
	mark, colour := "ok", green
	switch {
	case e.Broken():
		mark, colour = "BROKEN", red
	case len(e.Findings) > 0:
		mark, colour = "warning", yellow
	}
	if hasColour(a.stdout) {
		mark = colour + mark + plain + "       "[min(len(mark), 7):]
	} else {
		mark = fmt.Sprintf("%-7s", mark)
	}
	fprintf(a.stdout, "%s  %s: %s", styled(mark), e.Name, e.Promise)
	if took := time.Duration(e.Took * float64(time.Second)); took > time.Second {
		fprintf(a.stdout, " (%s)", round(took))
	}
	fprintln(a.stdout)
	for _, f := range e.Findings {
		fprintf(a.stdout, "         %s\n         → %s\n", f, f.Command)
	}
	if e.More {
		fprintln(a.stdout, "         … and more; --limit shows up to 1000")
	}
}
