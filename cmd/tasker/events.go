package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/events"
	"github.com/taskerhq/tasker/safetext"
	"github.com/taskerhq/tasker/store"
)

func (a *app) eventsCommand() *cobra.Command {
	c := group(&cobra.Command{Use: "events", Short: "What has happened, and who reads it"})
	c.AddCommand(a.eventsTailCommand(), a.subscribersCommand(), a.unsubscribeCommand())
	return c
}

// tail is what `tasker events tail` was asked for.
type tail struct {
	patterns []string
	since    time.Duration
	task     int64 // 0: all
	follow   bool
}

func (a *app) eventsTailCommand() *cobra.Command {
	var t tail
	var since, task string
	command := &cobra.Command{
		Use: "tail [PATTERN]…", Short: "Show events, and with --follow those that come, as they are committed",
		Long: `Shows the events whose name matches a pattern: step.completed, task.*, order.* for
your own, or * for all, which is the default. What is still to be committed comes
when it is. Nothing is kept in the database: it is for looking on, and a subscriber
is for what must not be lost.

With -o json each line is an event.`,
		Example: `  tasker events tail --since 1h task.failed step.failed
  tasker events tail --follow
  tasker events tail --task 4711 -o json`,
		RunE: func(c *cobra.Command, args []string) error {
			t.patterns = args
			if len(args) == 0 {
				t.patterns = []string{"*"}
			}
			var err error
			if task != "" {
				if t.task, err = parseID(task, "task"); err != nil {
					return err
				}
			}
			if t.since, err = age("--since", since); err != nil {
				return err
			}
			return a.withStore(c.Context(), func(s *store.Store) error {
				from, err := t.from(c, s)
				if err != nil {
					return err
				}
				return a.tail(c.Context(), s, &t, from)
			})
		},
	}
	flags := command.Flags()
	flags.BoolVarP(&t.follow, "follow", "f", false, "go on until Ctrl-C")
	flags.StringVar(&since, "since", "10m", "from so long ago, such as 2h or 7d; with --task: from when it was enqueued")
	flags.StringVar(&task, "task", "", "of this task alone")
	return command
}

// from is when what was asked for begins.
func (t *tail) from(c *cobra.Command, s *store.Store) (time.Time, error) {
	if t.task == 0 || c.Flags().Changed("since") {
		return time.Now().Add(-t.since), nil
	}
	task, err := s.Task(c.Context(), t.task)
	if err != nil {
		return time.Time{}, err
	}
	return task.CreatedAt, nil
}

func (a *app) tail(ctx context.Context, s *store.Store, t *tail, from time.Time) error {
	cursor, err := s.EventsSince(ctx, from)
	if err != nil {
		return err
	}
	show := func(b *store.EventBatch) error {
		for i := range b.Events {
			e := &b.Events[i]
			if t.task != 0 && e.TaskID != t.task {
				continue
			}
			if err := a.printEvent(e); err != nil {
				return err
			}
		}
		return nil
	}
	if t.follow {
		return events.Follow(ctx, s, cursor, t.patterns, slog.New(slog.DiscardHandler), show)
	}
	for {
		batch, err := s.ReadEvents(ctx, cursor, t.patterns, 1000, "", "")
		if err != nil {
			return err
		}
		if err := show(batch); err != nil {
			return err
		}
		if batch.Cursor == cursor {
			return nil
		}
		cursor = batch.Cursor
	}
}

// printEvent prints a line.
func (a *app) printEvent(e *tasker.Event) error {
	if a.output == "json" {
		line, err := json.Marshal(e)
		if err != nil {
			return err
		}
		_, err = fprintf(forJSON(a.stdout), "%s\n", styled(line))
		return err
	}
	name := fmt.Sprintf("%-26s", safetext.Visible(string(e.Name)))
	if hasColour(a.stdout) {
		switch {
		case strings.HasSuffix(string(e.Name), ".completed"):
			name = green + name + plain
		case strings.HasSuffix(string(e.Name), ".failed"), strings.HasSuffix(string(e.Name), "refused"):
			name = red + name + plain
		case strings.HasSuffix(string(e.Name), ".retry_requested"):
			name = yellow + name + plain
		}
	}
	words := []string{e.OccurredAt.Local().Format("15:04:05.000"), name}
	if e.TaskID != 0 {
		words = append(words, fmt.Sprintf("task %d", e.TaskID))
	}
	if e.TaskName != "" {
		words = append(words, safetext.Visible(e.Namespace+"/"+e.TaskName))
	}
	if e.StepName != "" {
		words = append(words, safetext.Visible(e.StepName))
	}
	if e.Attempt > 0 {
		words = append(words, fmt.Sprintf("attempt %d", e.Attempt))
	}
	if len(e.Data) > 0 {
		words = append(words, shorten(safetext.Visible(string(e.Data)), 200))
	}
	_, err := fprintln(a.stdout, styled(strings.Join(words, "  ")))
	return err
}

func (a *app) subscribersCommand() *cobra.Command {
	return &cobra.Command{
		Use: "subscribers", Short: "List durable subscribers: how far behind each is, who reads for it, and at which event it stands", Args: argsExactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withStore(c.Context(), func(s *store.Store) error {
				lags, err := s.EventLags(c.Context())
				if err != nil {
					return err
				}
				if a.output == "json" {
					return a.printJSON(lags)
				}
				var t table
				t.add("name", "patterns", "behind", "lag", "reads", "stands at")
				for i := range lags {
					l := &lags[i]
					lag, reads, stands := "-", "nobody", "-"
					if l.Lag != nil {
						lag = seconds(*l.Lag)
					}
					if l.Holder != nil {
						reads = *l.Holder
					}
					if l.FailedEventID != nil && l.Failure != nil {
						stands = fmt.Sprintf("event %d: %s", *l.FailedEventID, shorten(*l.Failure, 80))
					}
					t.add(l.Name, strings.Join(l.Patterns, " "), strconv.FormatInt(l.Behind, 10), lag, reads, stands)
				}
				t.print(a.stdout)
				return nil
			})
		},
	}
}

func (a *app) unsubscribeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "unsubscribe NAME", Short: "Drop a durable subscriber and its place: what it has not read it will not get", Args: argsExactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withStore(c.Context(), func(s *store.Store) error {
				if err := s.Unsubscribe(c.Context(), args[0]); err != nil {
					if errors.Is(err, store.ErrNotFound) {
						return fmt.Errorf("%w; there are those of: tasker events subscribers", err)
					}
					return err
				}
				if a.output == "json" {
					return a.printJSON(map[string]string{"name": args[0], "done": "unsubscribe"})
				}
				fprintf(a.stdout, "%s is no subscriber any more\n", args[0])
				return nil
			})
		},
	}
}
