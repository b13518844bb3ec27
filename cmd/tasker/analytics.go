package main

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/taskerhq/tasker/analytics"
	"github.com/taskerhq/tasker/store"
)

func (a *app) analyticsCommand() *cobra.Command {
	c := group(&cobra.Command{Use: "analytics", Short: "How long tasks take and of what, what fails, and what keeps tasks waiting now"})
	c.AddCommand(
		a.scopedCommand(&cobra.Command{
			Use: "performance", Short: "Throughput, errors, and how long tasks and steps take",
			Long: `Sums up the last hour, four hours and day, and lists the templates of the period
with how their steps' time is shared between waiting, running and backoff; with
--name, its steps. Percentiles are right to 9 %. What ended in the last seconds may
not be counted yet.`,
			Example: "  tasker analytics performance --period 4h\n  tasker analytics performance --namespace billing --name settle_invoice",
		}, func(ctx context.Context, s *store.Store, scope store.Scope) error {
			p, err := analytics.PerformanceOf(ctx, s, scope)
			if err != nil || a.output == "json" {
				return a.jsonOr(p, err)
			}
			a.printPerformance(p, scope)
			return nil
		}),
		a.scopedCommand(&cobra.Command{
			Use: "bottlenecks", Short: "What keeps tasks waiting now, what took longest, what fails most, and what could be done",
			Example: "  tasker analytics bottlenecks\n  tasker analytics bottlenecks --period 1h --name order -o json",
		}, func(ctx context.Context, s *store.Store, scope store.Scope) error {
			b, err := analytics.BottlenecksOf(ctx, s, scope)
			if err != nil || a.output == "json" {
				return a.jsonOr(b, err)
			}
			a.printBottlenecks(b)
			return nil
		}),
		&cobra.Command{
			Use: "task TASK", Short: "Where the time of one task went, and how long it may take yet", Args: argsExactly(1),
			RunE: func(c *cobra.Command, args []string) error {
				id, err := parseID(args[0], "task")
				if err != nil {
					return err
				}
				return a.withStore(c.Context(), func(s *store.Store) error {
					t, err := analytics.TaskOf(c.Context(), s, id)
					if err != nil || a.output == "json" {
						return a.jsonOr(t, err)
					}
					a.printCourse(t)
					return nil
				})
			},
		})
	return c
}

// jsonOr prints v, or returns the error.
func (a *app) jsonOr(v any, err error) error {
	if err != nil {
		return err
	}
	return a.printJSON(v)
}

// scopedCommand gives the command a period, a namespace and a name.
func (a *app) scopedCommand(command *cobra.Command, run func(context.Context, *store.Store, store.Scope) error) *cobra.Command {
	var scope store.Scope
	var period string
	command.Args = argsExactly(0)
	command.RunE = func(c *cobra.Command, _ []string) (err error) {
		if scope.Period, err = age("--period", period); err != nil {
			return err
		}
		return a.withStore(c.Context(), func(s *store.Store) error {
			if err := knownTemplate(c.Context(), s, scope.Namespace, scope.Name); err != nil {
				return err
			}
			return run(c.Context(), s, scope)
		})
	}
	flags := command.Flags()
	flags.StringVar(&period, "period", "24h", "how far back, such as 90m, 4h or 7d")
	flags.StringVar(&scope.Namespace, "namespace", "", "of this namespace alone")
	flags.StringVar(&scope.Name, "name", "", "of this template alone, all its versions")
	return command
}

func (a *app) printPerformance(p *analytics.Performance, scope store.Scope) {
	if p.AsOf.IsZero() {
		fprintln(a.stdout, "nothing is counted yet: a worker counts, every few seconds")
		return
	}
	t := table{}
	t.add("last", "created", "completed", "failed", "tasks/s", "errors", "mean task", "steps/s", "mean step", "retries that helped")
	for _, name := range []string{"1h", "4h", "24h"} {
		o := p.Periods[name]
		t.add(name, count(o.Created), count(o.Completed), count(o.Failed), decimal(o.PerSecond), percent(o.Error), took(o.Seconds), decimal(o.Steps), took(o.Run), percent(o.Retry))
	}
	t.print(a.stdout)
	if len(p.Templates) == 0 {
		fprintf(a.stdout, "\nnothing ended in the last %s\n", scope.Period)
		return
	}
	fprintln(a.stdout)
	t = table{}
	t.add("template", "completed", "failed", "p50", "p95", "p99", "waiting", "running", "backoff")
	for _, x := range p.Templates {
		f := x.Seconds[store.MeasureTotal]
		t.add(x.Namespace+"/"+x.Name, count(x.Outcomes.Completed), count(x.Outcomes.Failed), took(f.P50), took(f.P95), took(f.P99), percent(x.Shares.Wait), percent(x.Shares.Run), percent(x.Shares.Backoff))
	}
	t.print(a.stdout)
	if scope.Name != "" {
		for _, x := range p.Templates {
			fprintf(a.stdout, "\nsteps of %s/%s\n", x.Namespace, x.Name)
			t = table{}
			t.add("step", "completed", "failed", "retried", "run p50", "p95", "p99", "wait p50", "p95", "backoff mean")
			for _, s := range x.Steps {
				run, wait := s.Seconds[store.MeasureRun], s.Seconds[store.MeasureWait]
				t.add(s.Step, count(s.Outcomes.Completed), count(s.Outcomes.Failed), count(s.Outcomes.Retried), took(run.P50), took(run.P95), took(run.P99), took(wait.P50), took(wait.P95), took(s.Seconds[store.MeasureBackoff].Mean))
			}
			t.print(a.stdout)
		}
	}
	fprintf(a.stdout, "\nas of %s\n", p.AsOf.Local().Format(time.DateTime))
}

func (a *app) printBottlenecks(b *analytics.Bottlenecks) {
	section := func(title string, t table) {
		if len(t.rows) > 1 {
			fprintf(a.stdout, "%s\n", title)
			t.print(a.stdout)
			fprintln(a.stdout)
		}
	}
	rows := func(head ...string) table { return tableOf(head) }

	t := rows("tasks", "wait for", "of", "template", "step", "the oldest since", "such as")
	for _, w := range b.Waiting {
		t.add(count(w.Tasks), w.Reason, w.Of, w.Namespace+"/"+w.Name, w.Step, took(w.Oldest), strconv.FormatInt(w.Task, 10))
	}
	if len(t.rows) == 1 {
		fprintf(a.stdout, "no task is open\n\n")
	}
	section(fmt.Sprintf("What tasks wait for now (the oldest %d that are open)", b.Sample), t)
	t = rows("queue", "wait", "run", "threads", "the oldest since")
	for _, q := range b.Queues {
		t.add(q.Name, strconv.Itoa(q.Waiting), strconv.Itoa(q.Running), strconv.Itoa(q.Threads), took(q.Oldest))
	}
	section("Sidekiq queues", t)
	t = rows("gate", "taken", "of", "wait", "the oldest since")
	for _, l := range b.Limits {
		of := ""
		switch {
		case l.Paused:
			of = "paused"
		case l.Most != nil:
			of = strconv.Itoa(*l.Most)
		case l.Rate != nil:
			of = decimal(*l.Rate) + "/s"
		}
		t.add(l.Scope+" "+l.Name, strconv.Itoa(l.Taken), of, strconv.Itoa(l.Waiting), took(l.Oldest))
	}
	section("Limits", t)
	t = rows("worker", "name", "tasks", "of")
	for _, w := range b.Workers {
		t.add(strconv.FormatInt(w.Worker, 10), w.Name, strconv.Itoa(w.Tasks), strconv.Itoa(w.Most))
	}
	section("Workers", t)
	t = rows("step", "of", "waits", "before")
	for _, g := range b.Growing {
		t.add(g.Step, g.Namespace+"/"+g.Name, took(g.Lately), took(g.Before))
	}
	section("Waits that grow", t)
	t = rows("task", "template", "took", "ended")
	for _, s := range b.SlowestTasks {
		t.add(strconv.FormatInt(s.Task, 10), s.Namespace+"/"+s.Name, took(s.Seconds), s.EndedAt.Local().Format(time.DateTime))
	}
	section("Slowest tasks", t)
	t = rows("step", "template", "task", "took", "ended")
	for _, s := range b.SlowestSteps {
		t.add(s.Step, s.Namespace+"/"+s.Name, strconv.FormatInt(s.Task, 10), took(s.Seconds), s.EndedAt.Local().Format(time.DateTime))
	}
	section("Slowest steps", t)
	t = rows("attempts", "step", "of", "class", "message of the last", "task")
	for _, f := range b.Failures {
		t.add(count(f.N), f.Step, f.Namespace+"/"+f.Name, f.Class, shortened(f.Message, 60), strconv.FormatInt(f.Task, 10))
	}
	section("Failures", t)
	for i, r := range b.Advice {
		if i == 0 {
			fprintln(a.stdout, "What could be done")
		}
		fprintf(a.stdout, "%d. %s: %s.\n   Change: %s.\n   Then: %s.\n", i+1, r.About, r.Finding, r.Change, r.Effect)
	}
}

// shortened is the text on one line of at most so many characters.
func shortened(text string, most int) string {
	runes := []rune(strings.Join(strings.Fields(text), " "))
	if len(runes) > most {
		return string(runes[:most-1]) + "…"
	}
	return string(runes)
}

func (a *app) printCourse(t *analytics.Task) {
	fprintf(a.stdout, "task %d, %s/%s %s: %s after %s", t.TaskID, t.Namespace, t.Name, t.Version, t.State, took(t.Elapsed))
	if t.Remaining != nil {
		fprintf(a.stdout, ", about %s to go", took(*t.Remaining))
	}
	fprintln(a.stdout)
	if len(t.Unknown) > 0 {
		fprintf(a.stdout, "of these steps nothing is known from the last day: %s\n", strings.Join(t.Unknown, " "))
	}
	fprintf(a.stdout, "its attempts ran for %s, side by side at least %s: %.1f at a time are possible, %.1f were reached\n\n", took(t.Work), took(t.Shortest), t.Possible, t.Reached)
	on := map[string]string{}
	for _, l := range t.Path {
		on[l.Step] = percent(l.Share)
	}
	rows := table{}
	rows.add("step", "state", "attempts", "wait", "run", "backoff", "critical path")
	for _, s := range t.Steps {
		rows.add(s.Step, string(s.State), strconv.Itoa(s.Attempts), took(s.Wait), took(s.Run), took(s.Backoff), on[s.Step])
	}
	rows.print(a.stdout)
	for _, e := range t.Errors {
		fprintf(a.stdout, "\n%s failed", e.Step)
		if e.Ended {
			fprintf(a.stdout, " for good")
		}
		if len(e.Blocked) > 0 {
			fprintf(a.stdout, ", and holds up %s", strings.Join(e.Blocked, ", "))
		}
		fprintln(a.stdout)
		for _, f := range e.Failed {
			fprintf(a.stdout, "  attempt %d: %s: %s\n", f.Attempt, f.Class, shortened(f.Message, 100))
		}
	}
}

func count(n int64) string { return strconv.FormatInt(n, 10) }

func decimal(v float64) string { return strconv.FormatFloat(v, 'g', 3, 64) }

func percent(v float64) string { return fmt.Sprintf("%.1f %%", v*100) }

// took is a duration in seconds, for people; none is a dash.
func took(seconds float64) string {
	if seconds <= 0 {
		return "–"
	}
	d := time.Duration(seconds * float64(time.Second))
	for _, step := range []time.Duration{time.Hour, time.Minute, time.Second, time.Millisecond} {
		if d >= step {
			return d.Round(cmp.Or(step/100, 1)).String()
		}
	}
	return d.Round(time.Microsecond).String()
}
