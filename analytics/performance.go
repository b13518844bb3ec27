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
	"time"

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
	var err error
	if p.AsOf, err = s.StatsAsOf(ctx); err != nil {
		return nil, err
	}
	for name, period := range Overviews {
		within := c
		within.Period = period
		outcomes, figures, err := read(ctx, s, within)
		if err != nil {
			return nil, err
		}
		p.Periods[name] = overview(outcomes, figures, period)
	}
	outcomes, figures, err := read(ctx, s, c)
	if err != nil {
		return nil, err
	}
	p.Templates = templates(outcomes, figures)
	p.Trend, err = s.Trend(ctx, c)
	return p, err
}

func read(ctx context.Context, s *store.Store, c store.Scope) ([]store.Outcome, []store.Figure, error) {
	outcomes, err := s.Outcomes(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	figures, err := s.Figures(ctx, c)
	return outcomes, figures, err
}

func overview(outcomes []store.Outcome, figures []store.Figure, period time.Duration) *Overview {
	var o Overview
	var attempts, recovered, exhausted int64
	for _, x := range outcomes {
		if x.Step != "" {
			attempts += x.Completed + x.Failed + x.Retried
			recovered += x.Recovered
			exhausted += x.Exhausted
			continue
		}
		o.Created += x.Created
		o.Completed += x.Completed
		o.Failed += x.Failed
		o.Ended += x.Completed + x.Failed + x.Cancelled + x.Resolved
	}
	var total, run mean
	for _, f := range figures {
		switch {
		case f.Step == "" && f.Measure == store.MeasureTotal:
			total.add(f)
		case f.Step != "" && f.Measure == store.MeasureRun:
			run.add(f)
		}
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

func (m *mean) add(f store.Figure) { m.n += f.N; m.sum += f.Mean * float64(f.N) }

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
