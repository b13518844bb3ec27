package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/taskerhq/tasker/server"
	"github.com/taskerhq/tasker/store"
)

// pruning is what `tasker prune` is asked for, and what it has done.
type pruning struct {
	keep   store.Retention
	asked  store.PruneOptions
	dryRun bool

	tasks, events int64
	dropped       []store.OldEvents
	said          int64 // tasks, when progress was last printed
}

func (a *app) pruneCommand() *cobra.Command {
	var p pruning
	var tasks, events string
	command := &cobra.Command{
		Use: "prune --older-than AGE", Short: "Remove finished tasks and events that are old", Args: argsExactly(0),
		Long: `Deletes tasks that ended longer ago than --older-than with their steps, and drops
the partitions of events whose day ended before that, or before
--events-older-than. An AGE is a number of days (90d), or hours and minutes (36h).

A task stays while it, its parent or one of its children is open; tasks in error
stay unless --failed is given. Events that a durable subscriber has not read
stay, and are listed with its name.

It works in short transactions: interrupted, it has done what it said, and the
next run goes on from there. Workers do the same by themselves when
retention.tasks and retention.events are set.`,
		Example: `  tasker prune --older-than 90d --dry-run
  tasker prune --older-than 30d --events-older-than 90d -o json`,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if tasks == "" && events == "" {
				return &usageError{errors.New("prune what? say --older-than AGE, such as 90d, or --events-older-than AGE")}
			}
			if tasks != "" {
				if p.keep.Tasks, err = age("--older-than", tasks); err != nil {
					return err
				}
				p.keep.Events = p.keep.Tasks
			}
			if events != "" {
				if p.keep.Events, err = age("--events-older-than", events); err != nil {
					return err
				}
			}
			return a.withStore(c.Context(), func(s *store.Store) error { return a.prune(c.Context(), s, &p) })
		},
	}
	flags := command.Flags()
	flags.StringVar(&tasks, "older-than", "", "age of what is removed, such as 90d or 36h")
	flags.StringVar(&events, "events-older-than", "", "age of events that are removed (default: that of --older-than); alone: no task is removed")
	flags.BoolVar(&p.asked.Failed, "failed", false, "tasks in error too")
	flags.BoolVar(&p.asked.IgnoreSubscribers, "ignore-subscribers", false, "events too that a subscriber has not read: it will never see them")
	flags.BoolVar(&p.dryRun, "dry-run", false, "say what would be removed, and remove nothing")
	return command
}

// age reads 90d, or what time.ParseDuration reads.
func age(flag, text string) (time.Duration, error) {
	d, err := server.ParsePeriod(text)
	if err != nil {
		return 0, &usageError{fmt.Errorf("%s is an age such as 90d, 36h or 30m, up to 36500d, not %q", flag, text)}
	}
	return d, nil
}

func (a *app) prune(ctx context.Context, s *store.Store, p *pruning) error {
	if p.dryRun {
		if err := a.foresee(ctx, s, p); err != nil {
			return err
		}
	} else {
		err := s.Prune(ctx, p.keep, p.asked, func(done store.Pruned) { a.pruned(p, done) })
		if isTerminal(a.stderr) && p.said > 0 {
			fprintln(a.stderr)
		}
		if err != nil {
			return fmt.Errorf("after %d tasks and %d event partitions: %w; what is done is done, and the same command goes on from there", p.tasks, len(p.dropped), err)
		}
	}
	var kept []store.OldEvents
	if p.keep.Events > 0 {
		old, err := s.OldEvents(ctx, p.keep.Events)
		if err != nil {
			return err
		}
		for _, o := range old {
			if o.HeldBy != nil && !(p.dryRun && p.asked.IgnoreSubscribers) {
				kept = append(kept, o)
			}
		}
	}
	if a.output == "json" {
		return a.printJSON(struct {
			DryRun  bool              `json:"dry_run"`
			Tasks   int64             `json:"tasks"`
			Dropped []store.OldEvents `json:"event_partitions"`
			Events  int64             `json:"events"` // that were deleted one by one, of events_default
			Kept    []store.OldEvents `json:"kept"`
		}{p.dryRun, p.tasks, orNone(p.dropped), p.events, orNone(kept)})
	}
	verb := "removed"
	if p.dryRun {
		verb = "would remove"
	}
	fprintf(a.stdout, "%s %d tasks, %d event partitions (%.1f MiB)", verb, p.tasks, len(p.dropped), p.mebibytes())
	if p.events > 0 {
		fprintf(a.stdout, ", %d events of events_default", p.events)
	}
	fprintln(a.stdout)
	for _, o := range p.dropped {
		fprintf(a.stdout, "  %s\n", o.Partition)
	}
	for _, o := range kept {
		fprintf(a.stdout, "kept %s: subscriber %q has not read it; see tasker.event_lag, or give --ignore-subscribers\n", o.Partition, *o.HeldBy)
	}
	return nil
}

// foresee fills in what would be removed.
func (a *app) foresee(ctx context.Context, s *store.Store, p *pruning) (err error) {
	if p.keep.Tasks > 0 {
		if p.tasks, err = s.CountOldTasks(ctx, p.keep.Tasks, p.asked.Failed); err != nil {
			return err
		}
	}
	if p.keep.Events > 0 {
		old, err := s.OldEvents(ctx, p.keep.Events)
		if err != nil {
			return err
		}
		for _, o := range old {
			if o.HeldBy == nil || p.asked.IgnoreSubscribers {
				p.dropped = append(p.dropped, o)
			}
		}
	}
	return nil
}

// pruned counts what a transaction has removed, and says it: on a terminal in one
// line that grows, in a pipe now and then.
func (a *app) pruned(p *pruning, done store.Pruned) {
	p.tasks += done.Tasks
	p.events += done.Events
	if done.Partition != "" && done.Events == 0 {
		p.dropped = append(p.dropped, store.OldEvents{Partition: done.Partition, Bytes: &done.Bytes})
	}
	switch {
	case isTerminal(a.stderr):
		p.said = 1
		fprintf(a.stderr, "\r%d tasks, %d event partitions removed", p.tasks, len(p.dropped))
	case done.Partition != "":
		fprintf(a.stderr, "%s\n", removed(done))
	case p.tasks-p.said >= 10_000:
		p.said = p.tasks
		fprintf(a.stderr, "%d tasks removed so far\n", p.tasks)
	}
}

func removed(p store.Pruned) string {
	if p.Events > 0 {
		return fmt.Sprintf("%d events of %s removed", p.Events, p.Partition)
	}
	return p.Partition + " removed"
}

func (p *pruning) mebibytes() float64 {
	var n int64
	for _, o := range p.dropped {
		if o.Bytes != nil {
			n += *o.Bytes
		}
	}
	return float64(n) / (1 << 20)
}

// orNone is an empty list in JSON rather than null.
func orNone(list []store.OldEvents) []store.OldEvents {
	if list == nil {
		return []store.OldEvents{}
	}
	return list
}
