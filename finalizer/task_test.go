package finalizer_test

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/taskerhq/tasker/finalizer"
)

func TestATaskIsDecided(t *testing.T) {
	soon, past := now.Add(30*time.Second), now.Add(-time.Minute)
	charge := []string{"charge"}
	for _, c := range []struct {
		name     string
		standing finalizer.Standing
		want     finalizer.TaskDecision
	}{
		{"everything is done", finalizer.Standing{},
			finalizer.TaskDecision{Outcome: finalizer.TaskComplete}},
		{"a step may start", finalizer.Standing{Ready: 1, Unfinished: 3},
			finalizer.TaskDecision{Outcome: finalizer.HasReady}},
		{"a step failed, and others go on", finalizer.Standing{Ready: 1, Unfinished: 3, Failed: charge},
			finalizer.TaskDecision{Outcome: finalizer.HasReady}},
		{"a step failed, and nothing new may start", finalizer.Standing{Ready: 1, Unfinished: 3, Failed: charge, FailFast: true},
			finalizer.TaskDecision{Outcome: finalizer.TaskFailed, Steps: charge, Message: "1 step failed: charge"}},
		{"fail fast without a failure", finalizer.Standing{Ready: 1, Unfinished: 3, FailFast: true},
			finalizer.TaskDecision{Outcome: finalizer.HasReady}},
		{"an attempt is out", finalizer.Standing{Outstanding: 1, Unfinished: 1, Failed: charge},
			finalizer.TaskDecision{Outcome: finalizer.Waiting}},
		{"an attempt is out and a retry comes", finalizer.Standing{Outstanding: 1, Retrying: 1, EarliestRetry: soon, Unfinished: 2},
			finalizer.TaskDecision{Outcome: finalizer.Waiting, RetryAt: soon, Delay: 30 * time.Second}},
		{"fail fast waits for what is out, not for retries", finalizer.Standing{Outstanding: 1, Retrying: 1, EarliestRetry: soon, Unfinished: 2, Failed: charge, FailFast: true},
			finalizer.TaskDecision{Outcome: finalizer.Waiting}},
		{"a retry comes", finalizer.Standing{Retrying: 2, EarliestRetry: soon, Unfinished: 2, Failed: charge},
			finalizer.TaskDecision{Outcome: finalizer.RetryViable, RetryAt: soon, Delay: 30 * time.Second}},
		{"a retry is due", finalizer.Standing{Retrying: 1, EarliestRetry: past, Unfinished: 1},
			finalizer.TaskDecision{Outcome: finalizer.RetryViable, RetryAt: past}},
		{"steps failed and the rest stands behind them", finalizer.Standing{Unfinished: 5, Failed: []string{"charge", "ship"}, Cancelled: []string{"mail"}},
			finalizer.TaskDecision{Outcome: finalizer.TaskFailed, Steps: []string{"charge", "ship"}, Message: "2 steps failed: charge, ship"}},
		{"the last step failed", finalizer.Standing{Failed: charge},
			finalizer.TaskDecision{Outcome: finalizer.TaskFailed, Steps: charge, Message: "1 step failed: charge"}},
		{"a cancelled step doesn't hang its task", finalizer.Standing{Unfinished: 2, Cancelled: charge},
			finalizer.TaskDecision{Outcome: finalizer.TaskFailed, Steps: charge, Message: "1 step cancelled: charge"}},
		{"nor does it leave it complete", finalizer.Standing{Cancelled: charge},
			finalizer.TaskDecision{Outcome: finalizer.TaskFailed, Steps: charge, Message: "1 step cancelled: charge"}},
		{"states that contradict one another", finalizer.Standing{Unfinished: 2},
			finalizer.TaskDecision{Outcome: finalizer.TaskFailed, Message: "2 unfinished steps can't move, though no step failed or was cancelled: " +
				"their states contradict one another; look at the task's events, then resolve or cancel these steps"}},
	} {
		if got := finalizer.DecideTask(c.standing, now); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s:\n got %+v\nwant %+v", c.name, got, c.want)
		}
	}
}

func TestManyFailedStepsAreCountedInTheMessageAndAllNamedBeside(t *testing.T) {
	var names []string
	for i := range 12 {
		names = append(names, fmt.Sprintf("s%d", i))
	}
	d := finalizer.DecideTask(finalizer.Standing{Failed: names}, now)
	if want := "12 steps failed: s0, s1, s2, s3, s4, s5, s6, s7, s8, s9 and 2 more"; d.Message != want || len(d.Steps) != 12 {
		t.Errorf("%q with %d names", d.Message, len(d.Steps))
	}
}

// No standing leaves a task without something that will happen next.
func TestATaskNeverHangs(t *testing.T) {
	names := rapid.SliceOfN(rapid.StringMatching(`[a-z]{1,5}`), 0, 3)
	rapid.Check(t, func(t *rapid.T) {
		s := finalizer.Standing{
			Ready:         rapid.IntRange(0, 2).Draw(t, "ready"),
			Outstanding:   rapid.IntRange(0, 2).Draw(t, "outstanding"),
			Retrying:      rapid.IntRange(0, 2).Draw(t, "retrying"),
			EarliestRetry: now.Add(time.Duration(rapid.Int64Range(-1e12, 1e12).Draw(t, "due"))),
			Failed:        names.Draw(t, "failed"),
			Cancelled:     names.Draw(t, "cancelled"),
			FailFast:      rapid.Bool().Draw(t, "fail fast"),
		}
		s.Unfinished = s.Ready + s.Outstanding + s.Retrying + rapid.IntRange(0, 2).Draw(t, "behind")
		d := finalizer.DecideTask(s, now)
		if d.Delay < 0 {
			t.Fatalf("a delay of %v", d.Delay)
		}
		switch d.Outcome {
		case finalizer.TaskComplete:
			if s.Unfinished > 0 || len(s.Failed) > 0 || len(s.Cancelled) > 0 {
				t.Fatalf("complete with %+v", s)
			}
		case finalizer.TaskFailed:
			if s.Outstanding > 0 || (!s.FailFast && s.Ready+s.Retrying > 0) || d.Message == "" {
				t.Fatalf("failed with %+v: %q", s, d.Message)
			}
		case finalizer.RetryViable:
			if s.Retrying == 0 || !d.RetryAt.Equal(s.EarliestRetry) {
				t.Fatalf("a retry at %v with %+v", d.RetryAt, s)
			}
		case finalizer.Waiting:
			if s.Outstanding == 0 {
				t.Fatalf("waits for nothing with %+v", s)
			}
		case finalizer.HasReady:
			if s.Ready == 0 {
				t.Fatalf("has nothing to start with %+v", s)
			}
		default:
			t.Fatalf("%v with %+v", d.Outcome, s)
		}
	})
}

func TestOutcomesHaveWords(t *testing.T) {
	seen := map[string]bool{}
	for o := finalizer.TaskComplete; o <= finalizer.HasReady+1; o++ {
		if seen[o.String()] {
			t.Errorf("%d is called %q, as another", int(o), o)
		}
		seen[o.String()] = true
	}
}
