package analytics

import (
	"slices"
	"testing"

	"github.com/taskerhq/tasker/store"
)

func waited(step string, n int64, seconds float64) store.Outcome {
	return store.Outcome{Namespace: "shop", Name: "order", Step: step, Waited: n, WaitedSeconds: seconds}
}

func TestAWaitGrowsAgainstWhatItWasBefore(t *testing.T) {
	for _, c := range []struct {
		what      string
		now, then store.Outcome // then has what came lately in it
		want      []Growth
	}{
		{"three times as long", waited("a", 30, 90), waited("a", 130, 190), []Growth{{"shop", "order", "a", 3, 1, 30}}},
		{"as long as before", waited("a", 30, 30), waited("a", 130, 130), nil},
		{"too few lately", waited("a", 19, 90), waited("a", 130, 190), nil},
		{"too few before", waited("a", 30, 90), waited("a", 49, 109), nil},
		{"too short to matter", waited("a", 30, 1.5), waited("a", 130, 2.5), nil},
		{"of the task, not of a step", waited("", 30, 90), waited("", 130, 190), nil},
	} {
		if got := growing([]store.Outcome{c.now}, []store.Outcome{c.then}); !slices.Equal(got, c.want) {
			t.Errorf("%s: %+v, not %+v", c.what, got, c.want)
		}
	}
}

// Each piece of advice says which setting or command, and comes for its reason alone.
func TestAdviceNamesTheChange(t *testing.T) {
	step := func(o store.Outcome, seconds map[store.Measure]store.Figure) *Performance {
		shares := Shares{}
		if f := seconds[store.MeasureBackoff]; f.N > 0 {
			shares.Backoff = 0.8
		}
		return &Performance{Templates: []Template{{
			Namespace: "shop", Name: "order", Part: Part{Outcomes: store.Outcome{Completed: 50}}, Shares: shares, Steps: []Part{{Step: "charge", Outcomes: o, Seconds: seconds}},
		}}}
	}
	none := &Performance{}
	worker := []store.Load{{Worker: 1, Tasks: 1, Most: 500}}
	full := []store.Load{{Worker: 1, Tasks: 500, Most: 500}}
	waits := []store.Waiting{{Reason: "worker", Tasks: 9}}
	for _, c := range []struct {
		what string
		b    Bottlenecks
		p    *Performance
		want string // the change; empty: nothing is advised
	}{
		{"all is well", Bottlenecks{Workers: worker, Queues: []store.QueueUse{{Name: "default", Running: 3, Threads: 10}}}, none, ""},
		{"a full limit", Bottlenecks{Workers: worker, Limits: []store.GateUse{{Scope: "key", Name: "bank", Most: new(5), Taken: 5, Waiting: 3}}}, none, "tasker gate limit key bank --concurrency 8"},
		{"a limit with room", Bottlenecks{Workers: worker, Limits: []store.GateUse{{Scope: "key", Name: "bank", Most: new(5), Taken: 4}}}, none, ""},
		{"a pause", Bottlenecks{Workers: worker, Limits: []store.GateUse{{Scope: "queue", Name: "slow", Paused: true, Waiting: 3}}}, none, "tasker gate resume queue slow"},
		{"nobody takes from a queue", Bottlenecks{Workers: worker, Queues: []store.QueueUse{{Name: "slow", Waiting: 3}}}, none, "start Sidekiq with --queue slow, or name the queue in its configuration"},
		{"a queue with all threads busy", Bottlenecks{Workers: worker, Queues: []store.QueueUse{{Name: "slow", Waiting: 50, Running: 10, Threads: 10, Oldest: 3}}}, none, "more Sidekiq processes for it, or a higher concurrency: 20 threads"},
		{"no worker", Bottlenecks{Waiting: waits}, none, "tasker worker"},
		{"full workers", Bottlenecks{Workers: full, Waiting: waits}, none, "worker.max_tasks, or one more worker"},
		{"full workers, and nothing waits", Bottlenecks{Workers: full}, none, ""},
		{
			"retries that never help", Bottlenecks{Workers: worker},
			step(store.Outcome{Exhausted: 20, Recovered: 1, Retried: 40}, nil), "default_retry_limit of the step, or a permanent error where trying again can't help",
		},
		{"retries that help", Bottlenecks{Workers: worker}, step(store.Outcome{Exhausted: 20, Recovered: 20, Retried: 40}, nil), ""},
		{
			"mostly backoff", Bottlenecks{Workers: worker},
			step(store.Outcome{Recovered: 20, Retried: 40}, map[store.Measure]store.Figure{store.MeasureBackoff: {N: 40, Mean: 60}}), "base_seconds and cap_seconds in retry of the step",
		},
		{"a wait that grows", Bottlenecks{Workers: worker, Growing: []Growth{{"shop", "order", "ship", 3, 1, 30}}}, none, "see waiting, queues and limits: what it waits for is there"},
	} {
		got := ""
		advice := advise(&c.b, c.p)
		if len(advice) > 0 {
			got = advice[0].Change
		}
		if len(advice) > 1 || got != c.want {
			t.Errorf("%s: %+v, not %q", c.what, advice, c.want)
		}
		for _, a := range advice {
			if a.About == "" || a.Finding == "" || a.Effect == "" {
				t.Errorf("%s: %+v says too little", c.what, a)
			}
		}
	}
}

func TestTheMostUsefulAdviceComesFirst(t *testing.T) {
	var b Bottlenecks
	for i := range 8 {
		b.Limits = append(b.Limits, store.GateUse{Scope: "key", Name: string(rune('a' + i)), Most: new(1), Taken: 1, Waiting: i + 1})
	}
	advice := advise(&b, &Performance{})
	if len(advice) != mostAdvice || advice[0].About != "key h" || advice[4].About != "key d" {
		t.Errorf("advice %+v", advice)
	}
}
