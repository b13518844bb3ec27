package analytics

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/taskerhq/tasker/store"
)

// Bottlenecks is what keeps tasks from ending sooner.
type Bottlenecks struct {
	AsOf time.Time `json:"as_of"` // of the counts; what is open is as it is now

	Waiting []store.Waiting  `json:"waiting"` // what the oldest open tasks wait for, at most Sample of them
	Sample  int              `json:"sample"`
	Queues  []store.QueueUse `json:"queues"`
	Limits  []store.GateUse  `json:"limits"`
	Workers []store.Load     `json:"workers"`
	Growing []Growth         `json:"growing"` // steps that wait longer than they did

	SlowestTasks []store.Slow    `json:"slowest_tasks"` // of the period
	SlowestSteps []store.Slow    `json:"slowest_steps"`
	Failures     []store.Failure `json:"failures"`

	Advice []Advice `json:"recommendations"` // at most five, what helps most first
}

// Growth is a step that waits longer lately than before.
type Growth struct {
	Namespace string  `json:"namespace"`
	Name      string  `json:"name"`
	Step      string  `json:"step"`
	Lately    float64 `json:"lately_seconds"` // mean of the last quarter of an hour
	Before    float64 `json:"before_seconds"` // of the last four hours
	N         int64   `json:"n"`              // lately
}

// Advice is what could be done.
type Advice struct {
	About   string `json:"about"`
	Finding string `json:"finding"`
	Change  string `json:"change"` // which setting, or command
	Effect  string `json:"effect"` // that is to be expected
	// gain is what the pieces of advice are ordered by: how many tasks or attempts
	// it is about, roughly.
	gain float64
}

const (
	sample     = 2000
	most       = 10
	mostAdvice = 5
	lately     = 15 * time.Minute
	before     = 4 * time.Hour
	fewest     = 20                     // waits from which on a mean says something
	grown      = 2                      // times what it was
	worthwhile = 100 * time.Millisecond // a wait from which on it matters
	silent     = 30 * time.Second       // Sidekiq processes that were not heard of for longer don't count
)

// BottlenecksOf looks at what is open, and at what ended within the scope.
func BottlenecksOf(ctx context.Context, s *store.Store, c store.Scope) (*Bottlenecks, error) {
	b := &Bottlenecks{Sample: sample}
	recent, past := c, c
	recent.Period, past.Period = lately, before
	var (
		p         *Performance
		now, then []store.Outcome
		q         = together(ctx)
	)
	ask(q, &p, func(ctx context.Context) (*Performance, error) { return PerformanceOf(ctx, s, c) })
	ask(q, &b.Waiting, func(ctx context.Context) ([]store.Waiting, error) { return s.WaitingNow(ctx, sample) })
	ask(q, &b.Queues, func(ctx context.Context) ([]store.QueueUse, error) { return s.QueueUses(ctx, silent) })
	ask(q, &b.Limits, s.GateUses)
	ask(q, &b.Workers, s.Loads)
	ask(q, &b.SlowestTasks, func(ctx context.Context) ([]store.Slow, error) { return s.Slowest(ctx, c, false, most) })
	ask(q, &b.SlowestSteps, func(ctx context.Context) ([]store.Slow, error) { return s.Slowest(ctx, c, true, most) })
	ask(q, &b.Failures, func(ctx context.Context) ([]store.Failure, error) { return s.Failures(ctx, c, most) })
	ask(q, &now, func(ctx context.Context) ([]store.Outcome, error) { return s.Outcomes(ctx, recent) })
	ask(q, &then, func(ctx context.Context) ([]store.Outcome, error) { return s.Outcomes(ctx, past) })
	if err := q.Wait(); err != nil {
		return nil, err
	}
	b.AsOf = p.AsOf
	b.Waiting = slices.DeleteFunc(b.Waiting, func(w store.Waiting) bool {
		return c.Namespace != "" && w.Namespace != c.Namespace || c.Name != "" && w.Name != c.Name
	})
	b.Growing = growing(now, then)
	b.Advice = advise(b, p)
	return b, nil
}

func growing(now, then []store.Outcome) []Growth {
	type key struct{ namespace, name, step string }
	old := map[key]store.Outcome{}
	for _, o := range then {
		old[key{o.Namespace, o.Name, o.Step}] = o
	}
	list := []Growth{}
	for _, n := range now {
		if n.Step == "" || n.Waited < fewest || n.WaitedSeconds < worthwhile.Seconds()*float64(n.Waited) {
			continue
		}
		// What came lately is part of the four hours: taken out, to compare with what was before.
		o := old[key{n.Namespace, n.Name, n.Step}]
		if o.Waited-n.Waited < fewest {
			continue
		}
		mean := n.WaitedSeconds / float64(n.Waited)
		earlier := (o.WaitedSeconds - n.WaitedSeconds) / float64(o.Waited-n.Waited)
		if mean >= grown*earlier {
			list = append(list, Growth{n.Namespace, n.Name, n.Step, mean, earlier, n.Waited})
		}
	}
	slices.SortFunc(list, func(a, b Growth) int {
		return cmp.Compare(b.Lately-b.Before, a.Lately-a.Before)
	})
	return list
}

// advise says what could be done, by what was found.
func advise(b *Bottlenecks, p *Performance) []Advice {
	list := []Advice{}
	for _, l := range b.Limits {
		about := l.Scope + " " + l.Name
		switch {
		case l.Paused && l.Waiting > 0:
			list = append(list, Advice{
				about, fmt.Sprintf("it is paused, and %d attempts wait, the first for %s", l.Waiting, seconds(l.Oldest)),
				fmt.Sprintf("tasker gate resume %s %s", l.Scope, l.Name), fmt.Sprintf("%d attempts go on", l.Waiting), float64(l.Waiting),
			})
		case l.Most != nil && l.Taken >= *l.Most && l.Waiting > 0:
			more := min(l.Waiting, *l.Most)
			list = append(list, Advice{
				about, fmt.Sprintf("all %d places are taken, and %d attempts wait, the first for %s", *l.Most, l.Waiting, seconds(l.Oldest)),
				fmt.Sprintf("tasker gate limit %s %s --concurrency %d", l.Scope, l.Name, *l.Most+more),
				fmt.Sprintf("%s as many at a time, if what the limit protects bears them: those that wait are through in %s of the time", times(*l.Most+more, *l.Most), share(float64(*l.Most)/float64(*l.Most+more))),
				float64(l.Waiting),
			})
		}
	}
	for _, q := range b.Queues {
		switch {
		case q.Waiting > 0 && q.Threads == 0:
			list = append(list, Advice{
				"queue " + q.Name, fmt.Sprintf("%d attempts wait, and no Sidekiq process takes from it", q.Waiting),
				fmt.Sprintf("start Sidekiq with --queue %s, or name the queue in its configuration", q.Name), fmt.Sprintf("%d attempts go on", q.Waiting), float64(q.Waiting),
			})
		case q.Waiting > q.Threads && q.Running >= q.Threads*9/10 && q.Oldest >= worthwhile.Seconds():
			list = append(list, Advice{
				"queue " + q.Name, fmt.Sprintf("%d of %d threads run steps, and %d attempts wait, the first for %s", q.Running, q.Threads, q.Waiting, seconds(q.Oldest)),
				fmt.Sprintf("more Sidekiq processes for it, or a higher concurrency: %d threads", 2*q.Threads),
				"with twice the threads about half the wait, if the processors and what the handlers call bear them", float64(q.Waiting),
			})
		}
	}
	full, held, room := 0, 0, 0
	for _, w := range b.Workers {
		held, room = held+w.Tasks, room+w.Most
		if w.Most > 0 && w.Tasks >= w.Most*95/100 {
			full++
		}
	}
	waits := int64(0)
	for _, w := range b.Waiting {
		if w.Reason == "worker" {
			waits += w.Tasks
		}
	}
	switch {
	case len(b.Workers) == 0 && waits > 0:
		list = append(list, Advice{"workers", fmt.Sprintf("at least %d tasks wait, and no worker is alive", waits), "tasker worker", "tasks go on", float64(waits)})
	case full > 0 && full == len(b.Workers) && waits > 0:
		list = append(list, Advice{
			"workers", fmt.Sprintf("%d tasks are held, of %d that fit, and at least %d wait to be taken", held, room, waits),
			"worker.max_tasks, or one more worker", "tasks that wait for their handlers no longer keep others from starting; a held task costs about 20 KiB", float64(waits),
		})
	}
	for _, t := range p.Templates {
		for _, step := range t.Steps {
			o := step.Outcomes
			tried := o.Recovered + o.Exhausted
			if o.Exhausted >= 10 && o.Recovered*10 < tried {
				spared := float64(o.Retried) / float64(tried)
				list = append(list, Advice{
					fmt.Sprintf("%s/%s, step %s", t.Namespace, t.Name, step.Step), fmt.Sprintf("of %d steps that were tried again %d completed", tried, o.Recovered),
					"default_retry_limit of the step, or a permanent error where trying again can't help",
					fmt.Sprintf("each failure is known %.1f attempts and %s of waiting sooner", spared, seconds(step.Seconds[store.MeasureBackoff].Mean*spared)), float64(o.Exhausted),
				})
			}
		}
		if t.Shares.Backoff > 0.5 && t.ended() >= fewest {
			worst := slices.MaxFunc(t.Steps, func(a, b Part) int {
				return cmp.Compare(a.sum(store.MeasureBackoff), b.sum(store.MeasureBackoff))
			})
			list = append(list, Advice{
				fmt.Sprintf("%s/%s", t.Namespace, t.Name), fmt.Sprintf("%s of its steps' time is waiting for another attempt, most of it of %s", share(t.Shares.Backoff), worst.Step),
				"base_seconds and cap_seconds in retry of the step", "with half of them up to " + share(t.Shares.Backoff/2) + " less, if what fails is back that soon",
				float64(worst.Outcomes.Retried),
			})
		}
	}
	for _, g := range b.Growing {
		list = append(list, Advice{
			fmt.Sprintf("%s/%s, step %s", g.Namespace, g.Name, g.Step), fmt.Sprintf("it waits %s before it starts, %s before", seconds(g.Lately), seconds(g.Before)),
			"see waiting, queues and limits: what it waits for is there", "as before: " + seconds(g.Lately-g.Before) + " less for each task", float64(g.N) / 10,
		})
	}
	slices.SortStableFunc(list, func(a, b Advice) int { return cmp.Compare(b.gain, a.gain) })
	return list[:min(len(list), mostAdvice)]
}

func seconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	switch {
	case d >= time.Hour:
		return d.Round(time.Minute).String()
	case d >= time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d >= time.Millisecond:
		return d.Round(time.Millisecond).String()
	}
	return d.Round(time.Microsecond).String()
}

func share(s float64) string { return fmt.Sprintf("%.0f %%", s*100) }

func times(a, b int) string { return fmt.Sprintf("%.1f times", float64(a)/float64(b)) }
