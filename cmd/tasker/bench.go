package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/taskerhq/tasker/bench/contest"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/template"
)

const (
	benchNamespace = "tasker_bench"
	benchHandler   = "tasker.sleep" // every worker has it; 0 seconds is no work
)

// load is what `tasker bench` is asked for.
type load struct {
	contest.Order
	timeout time.Duration
}

func (a *app) benchCommand() *cobra.Command {
	var l load
	var shape string
	command := &cobra.Command{
		Use: "bench", Short: "Measure what your workers and your database do with a load of empty steps", Args: argsExactly(0),
		Long: `Enqueues tasks whose steps do nothing, waits until your workers have finished
them, and says how long that took, by the database's clock. A worker must run:
it does the work, and takes part in the figure with its settings. The load goes
where --database-url points, beside what else happens there: by default 500
tasks of 10 steps.

Shapes: chain is --size steps in a row; fan is one step, --size side by side,
and one; diamond has four steps, single has one.

The tasks stay, finished, in the namespace ` + benchNamespace + `; the template is one per
shape and size. Ctrl-C and --timeout cancel those that are still open.`,
		Example: `  tasker bench
  tasker bench --shape fan --size 100 --tasks 200
  tasker bench --shape single --in-turn --tasks 100    # latency`,
		RunE: func(c *cobra.Command, _ []string) error {
			l.Shape = contest.Shape(shape)
			if err := l.check(c.Flags().Changed("size")); err != nil {
				return &usageError{err}
			}
			return a.withStore(c.Context(), func(s *store.Store) error { return a.bench(c.Context(), s, l) })
		},
	}
	flags := command.Flags()
	flags.StringVar(&shape, "shape", string(contest.Chain), "chain, fan, diamond or single")
	flags.IntVar(&l.Size, "size", 10, "steps of a chain, or side by side in a fan: 1 to 10000")
	flags.IntVar(&l.Tasks, "tasks", 500, "how many tasks: 1 to 100000")
	flags.BoolVar(&l.InTurn, "in-turn", false, "one task after the other, each when the one before is finished: for latency")
	flags.DurationVar(&l.timeout, "timeout", 10*time.Minute, "give up after so long")
	return command
}

func (l *load) check(sized bool) error {
	switch l.Shape {
	case contest.Chain, contest.Fan:
		if l.Size < 1 || l.Size > 10_000 {
			return fmt.Errorf("--size is a number from 1 to 10000, not %d", l.Size)
		}
	case contest.Diamond, contest.Single:
		if sized {
			return fmt.Errorf("--size is for chain and fan: a %s has %d", l.Shape, l.StepsPerTask())
		}
		l.Size = 0
	default:
		return fmt.Errorf("--shape is chain, fan, diamond or single, not %q", l.Shape)
	}
	if l.Tasks < 1 || l.Tasks > 100_000 {
		return fmt.Errorf("--tasks is a number from 1 to 100000, not %d", l.Tasks)
	}
	if l.timeout <= 0 {
		return fmt.Errorf("--timeout is a time such as 10m, not %s", l.timeout)
	}
	return nil
}

// benched is what `tasker bench -o json` prints. Times are in milliseconds.
type benched struct {
	Template string  `json:"template"`
	Tasks    int     `json:"tasks"`
	Steps    int     `json:"steps"` // of all tasks
	InTurn   bool    `json:"in_turn"`
	Complete int     `json:"complete"` // tasks
	Took     float64 `json:"took_ms"`  // from the first INSERT to the end of the last task
	Rate     float64 `json:"steps_per_second"`
	Median   float64 `json:"median_ms"` // of a task, from its INSERT to its end
	P99      float64 `json:"p99_ms"`
}

func (a *app) bench(ctx context.Context, s *store.Store, l load) error {
	switch worked, err := s.HandledElsewhere(ctx, 0, []string{benchHandler}); {
	case err != nil:
		return err
	case !worked:
		return errors.New("no worker is alive on this database: start one with tasker worker, and run this beside it")
	}
	t, err := template.Parse(l.Name(), []byte(l.YAML(benchNamespace, "handler: "+benchHandler+", handler_config: {seconds: 0}")), template.Options{})
	if err != nil {
		return err
	}
	if _, err := s.RegisterTemplate(ctx, t, template.Checksum(t)); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	p := &progress{out: a.stderr, terminal: isTerminal(a.stderr), total: l.Tasks}
	tasks, open, err := l.run(limited, s, p)
	p.end()
	if err != nil {
		if limited.Err() != nil && ctx.Err() == nil {
			err = fmt.Errorf("after %s (--timeout) not all tasks were finished", l.timeout)
		}
		cancelled, failed := cancelTasks(context.WithoutCancel(ctx), s, open)
		fprintf(a.stderr, "%d of %d tasks were finished, %d were cancelled\n", len(tasks)-cancelled, l.Tasks, cancelled)
		return errors.Join(err, failed)
	}
	timing, err := s.TimingOf(ctx, tasks)
	if err != nil {
		return err
	}
	if err := a.printBenched(t.FullName(), l, timing); err != nil {
		return err
	}
	if failed := l.Tasks - timing.Complete; failed > 0 {
		return fmt.Errorf("%d tasks did not complete; see: tasker task list --template %s/%s", failed, benchNamespace, l.Name())
	}
	return nil
}

// run enqueues the tasks and waits until all are finished. It returns them, and
// those that are not.
func (l load) run(ctx context.Context, s *store.Store, p *progress) (tasks, open []int64, err error) {
	chunk, pause := max(1, 20_000/l.StepsPerTask()), 50*time.Millisecond // more steps in one INSERT are not faster
	if l.InTurn {
		chunk, pause = 1, 2*time.Millisecond
	}
	for len(tasks) < l.Tasks || len(open) > 0 {
		if len(tasks) < l.Tasks && (!l.InTurn || len(open) == 0) {
			more, err := s.EnqueueMany(ctx, benchNamespace, l.Name(), min(chunk, l.Tasks-len(tasks)))
			if err != nil {
				return tasks, open, err
			}
			tasks, open = append(tasks, more...), append(open, more...)
			if !l.InTurn && len(tasks) < l.Tasks {
				continue
			}
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return tasks, open, ctx.Err()
		}
		still, err := s.StillOpen(ctx, open)
		if err != nil {
			return tasks, open, err
		}
		open = still
		p.show(len(tasks) - len(open))
	}
	return tasks, nil, nil
}

// cancelTasks cancels those that have not ended meanwhile, and counts them.
func cancelTasks(ctx context.Context, s *store.Store, tasks []int64) (cancelled int, err error) {
	for _, id := range tasks {
		var refused *store.RefusedError // it has ended
		err := s.CancelTask(ctx, id, store.Operator{Name: "tasker bench", Reason: "the measurement was stopped"})
		if err != nil && !errors.As(err, &refused) {
			return cancelled, err
		}
		if err == nil {
			cancelled++
		}
	}
	return cancelled, nil
}

func (a *app) printBenched(name string, l load, t store.Timing) error {
	steps := l.Tasks * l.StepsPerTask()
	millis := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	rate := float64(steps) / max(t.All, time.Microsecond).Seconds()
	if a.output == "json" {
		return a.printJSON(benched{name, l.Tasks, steps, l.InTurn, t.Complete, millis(t.All), rate, millis(t.Median), millis(t.P99)})
	}
	fprintf(a.stdout, "%s: %d of %d tasks complete, %d steps\n", name, t.Complete, l.Tasks, steps)
	if !l.InTurn {
		fprintf(a.stdout, "%s from the first INSERT to the end of the last task: %.0f steps/s, %.0f tasks/s\n", round(t.All), rate, rate/float64(l.StepsPerTask()))
		return nil
	}
	fprintf(a.stdout, "a task, from its INSERT to its end: median %s, p99 %s\n", round(t.Median), round(t.P99))
	return nil
}

// progress tells how far it is: on a terminal in one line that is written over,
// else in a line from time to time.
type progress struct {
	out      io.Writer
	terminal bool
	total    int
	told     time.Time
	width    int
}

func (p *progress) show(done int) {
	every := 2 * time.Second
	if p.terminal {
		every = 100 * time.Millisecond
	}
	if p.told.IsZero() {
		p.told = time.Now() // what is done at once needs no line
	}
	if time.Since(p.told) < every {
		return
	}
	p.told = time.Now()
	line := fmt.Sprintf("%d of %d tasks", done, p.total)
	if !p.terminal {
		fprintln(p.out, line)
		return
	}
	fprintf(p.out, "\r%-*s", p.width, line) // over what was longer
	p.width = max(p.width, len(line))
}

// end clears the line.
func (p *progress) end() {
	if p.width > 0 {
		fprintf(p.out, "\r%s\r", strings.Repeat(" ", p.width))
	}
}
