// Package analytics says how tasks do: how long they take and of what, how often
// they fail and of what, what they wait for now, and where the time of one task
// went.
//
// What has ended is read from counts that workers keep up from the events
// (tasker.roll_up), a few seconds behind, and costs the same however many tasks there
// are. A percentile lies within a bucket of 9 %, and so is at most as far from the
// true one. What is open is read as it is.
package analytics

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/taskerhq/tasker/store"
)

// Performance is how tasks did.
type Performance struct {
	Namespace string               `json:"namespace,omitempty"` // empty: all
	Name      string               `json:"name,omitempty"`
	AsOf      time.Time            `json:"as_of"` // what ended until then is in it; zero: nothing was counted yet
	Periods   map[string]*Overview `json:"periods"`
	Templates []Template           `json:"templates"` // of the period that was asked for, the busiest first
	Trend     []store.Span         `json:"trend"`     // of it, too
}

// Overview sums up a period.
type Overview struct {
	Created    int64   `json:"tasks_created"`
	Completed  int64   `json:"tasks_completed"`
	Failed     int64   `json:"tasks_failed"`
	Ended      int64   `json:"tasks_ended"`       // in any way
	PerSecond  float64 `json:"tasks_per_second"`  // that ended
	Completion float64 `json:"completion_rate"`   // of those that ended, 0 to 1
	Error      float64 `json:"error_rate"`        // the same
	Seconds    float64 `json:"mean_task_seconds"` // from insert to end
	Steps      float64 `json:"steps_per_second"`  // attempts that ended
	Run        float64 `json:"mean_step_seconds"` // of an attempt
	Retry      float64 `json:"retry_success"`     // of the steps that ended after more than one attempt those that completed
}

// Template is how the tasks of a template did, all its versions together.
type Template struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Part
	Shares Shares `json:"shares"`
	Steps  []Part `json:"steps"` // in the order of their time in sum
}

// Part is how a step did, or the tasks themselves.
type Part struct {
	Step     string                         `json:"step,omitempty"`
	Outcomes store.Outcome                  `json:"outcomes"`
	Seconds  map[store.Measure]store.Figure `json:"seconds"`
}

// Shares is what the time of a template's steps went to, of 1 in all.
type Shares struct {
	Wait    float64 `json:"wait"` // from being ready to the start
	Run     float64 `json:"run"`
	Backoff float64 `json:"backoff"` // before another attempt
}

// Overviews are the periods of which there is always one.
var Overviews = map[string]time.Duration{"1h": time.Hour, "4h": 4 * time.Hour, "24h": 24 * time.Hour}

// PerformanceOf reads how tasks did within the scope.
func PerformanceOf(ctx context.Context, s *store.Store, c store.Scope) (*Performance, error) {
	p := &Performance{Namespace: c.Namespace, Name: c.Name, Periods: map[string]*Overview{}}
	var (
		mu       sync.Mutex // of the periods
		outcomes []store.Outcome
		figures  []store.Figure
		q        = together(ctx)
	)
	ask(q, &p.AsOf, s.StatsAsOf)
	ask(q, &figures, func(ctx context.Context) ([]store.Figure, error) { return s.Figures(ctx, c) })
	ask(q, &outcomes, func(ctx context.Context) ([]store.Outcome, error) { return s.Outcomes(ctx, c) })
	ask(q, &p.Trend, func(ctx context.Context) ([]store.Span, error) { return s.Trend(ctx, c) })
	for name, period := range Overviews {
		q.Go(func() error {
			within := c
			within.Period = period
			outcomes, err := s.Outcomes(q.ctx, within)
			mu.Lock()
			defer mu.Unlock()
			p.Periods[name] = overview(outcomes, period)
			return err
		})
	}
	if err := q.Wait(); err != nil {
		return nil, err
	}
	p.Templates = templates(outcomes, figures)
	return p, nil
}

// questions are asked side by side: on a busy database an answer takes as long as
// the longest of them.
type questions struct {
	*errgroup.Group
	ctx context.Context
}

// atOnce is how many questions are asked at once, so that others find connections.
const atOnce = 3

func together(ctx context.Context) questions {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	return questions{group, ctx}
}

// ask puts the answer of a question into to.
func ask[T any](q questions, to *T, question func(context.Context) (T, error)) {
	q.Go(func() (err error) {
		*to, err = question(q.ctx)
		return err
	})
}

func overview(outcomes []store.Outcome, period time.Duration) *Overview {
	var o Overview
	var attempts, recovered, exhausted int64
	var total, run mean
	for _, x := range outcomes {
		if x.Step != "" {
			attempts += x.Completed + x.Failed + x.Retried
			recovered += x.Recovered
			exhausted += x.Exhausted
			run.add(x.Ran, x.RanSeconds)
			continue
		}
		o.Created += x.Created
		o.Completed += x.Completed
		o.Failed += x.Failed
		o.Ended += x.Completed + x.Failed + x.Cancelled + x.Resolved
		total.add(x.Took, x.TookSeconds)
	}
	o.PerSecond = float64(o.Ended) / period.Seconds()
	o.Completion = ratio(o.Completed, o.Ended)
	o.Error = ratio(o.Failed, o.Ended)
	o.Seconds = total.value()
	o.Steps = float64(attempts) / period.Seconds()
	o.Run = run.value()
	o.Retry = ratio(recovered, recovered+exhausted)
	return &o
}

// mean is that of many figures together.
type mean struct {
	n   int64
	sum float64
}

func (m *mean) add(n int64, sum float64) { m.n += n; m.sum += sum }

func (m *mean) value() float64 {
	if m.n == 0 {
		return 0
	}
	return m.sum / float64(m.n)
}

func ratio(part, whole int64) float64 {
	if whole == 0 {
		return 0
	}
	return float64(part) / float64(whole)
}

func templates(outcomes []store.Outcome, figures []store.Figure) []Template {
	type key struct{ namespace, name string }
	all := map[key]map[string]*Part{}
	part := func(namespace, name, step string) *Part {
		k := key{namespace, name}
		if all[k] == nil {
			all[k] = map[string]*Part{"": {Seconds: map[store.Measure]store.Figure{}}}
		}
		if all[k][step] == nil {
			all[k][step] = &Part{Step: step, Seconds: map[store.Measure]store.Figure{}}
		}
		return all[k][step]
	}
	for _, o := range outcomes {
		part(o.Namespace, o.Name, o.Step).Outcomes = o
	}
	for _, f := range figures {
		part(f.Namespace, f.Name, f.Step).Seconds[f.Measure] = f
	}
	list := make([]Template, 0, len(all))
	for k, parts := range all {
		t := Template{Namespace: k.namespace, Name: k.name, Part: *parts[""]}
		for step, p := range parts {
			if step != "" {
				t.Steps = append(t.Steps, *p)
				t.Shares.Wait += p.sum(store.MeasureWait)
				t.Shares.Run += p.sum(store.MeasureRun)
				t.Shares.Backoff += p.sum(store.MeasureBackoff)
			}
		}
		if sum := t.Shares.Wait + t.Shares.Run + t.Shares.Backoff; sum > 0 {
			t.Shares = Shares{t.Shares.Wait / sum, t.Shares.Run / sum, t.Shares.Backoff / sum}
		}
		slices.SortFunc(t.Steps, func(a, b Part) int { return cmp.Or(cmp.Compare(b.all(), a.all()), strings.Compare(a.Step, b.Step)) })
		list = append(list, t)
	}
	slices.SortFunc(list, func(a, b Template) int {
		return cmp.Or(cmp.Compare(b.Outcomes.Created+b.ended(), a.Outcomes.Created+a.ended()), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	return list
}

// sum is all the seconds of a measure.
func (p *Part) sum(m store.Measure) float64 { f := p.Seconds[m]; return f.Mean * float64(f.N) }

func (p *Part) all() float64 {
	return p.sum(store.MeasureWait) + p.sum(store.MeasureRun) + p.sum(store.MeasureBackoff)
}

func (p *Part) ended() int64 {
	return p.Outcomes.Completed + p.Outcomes.Failed + p.Outcomes.Cancelled + p.Outcomes.Resolved
}
