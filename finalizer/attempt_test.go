package finalizer_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/finalizer"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// middle is the draw that leaves a delay as it is.
const middle = 0.5

func step(limit int) *tasker.StepTemplate {
	return &tasker.StepTemplate{Name: "charge", Handler: "billing.charge", Retryable: true, RetryLimit: limit, Retry: tasker.DefaultRetryPolicy()}
}

func failedWith(retryAfter string) *tasker.Failure {
	return &tasker.Failure{Class: "Timeout", Message: "no answer", RetryAfter: json.RawMessage(retryAfter)}
}

func TestAnAttemptIsDecided(t *testing.T) {
	once := step(3)
	once.Retryable = false
	permanent := &tasker.Failure{Class: "CardDeclined", Permanent: true}
	deaf := step(3)
	deaf.Retry.RetryAfterCap = 0

	for _, c := range []struct {
		name    string
		step    *tasker.StepTemplate
		attempt finalizer.Attempt
		state   tasker.StepState
		delay   time.Duration
		losses  int
		reason  finalizer.Reason
		note    string // a part of it
	}{
		{"success", step(3), finalizer.Attempt{Number: 1, Outcome: finalizer.Succeeded},
			tasker.StepComplete, 0, 0, finalizer.ReasonSucceeded, ""},
		{"success keeps the losses", step(3), finalizer.Attempt{Number: 4, Losses: 3, Outcome: finalizer.Succeeded},
			tasker.StepComplete, 0, 3, finalizer.ReasonSucceeded, ""},
		{"first failure", step(3), finalizer.Attempt{Number: 1, Outcome: finalizer.Failed, Failure: failedWith("")},
			tasker.StepWaitingForRetry, time.Second, 0, finalizer.ReasonBackoff, ""},
		{"second failure", step(3), finalizer.Attempt{Number: 2, Outcome: finalizer.Failed, Failure: failedWith("")},
			tasker.StepWaitingForRetry, 2 * time.Second, 0, finalizer.ReasonBackoff, ""},
		{"last failure", step(3), finalizer.Attempt{Number: 3, Outcome: finalizer.Failed, Failure: failedWith("")},
			tasker.StepError, 0, 0, finalizer.ReasonLastAttempt, ""},
		{"past the limit, as when a template's was lowered", step(3), finalizer.Attempt{Number: 9, Outcome: finalizer.Failed, Failure: failedWith("")},
			tasker.StepError, 0, 0, finalizer.ReasonLastAttempt, ""},
		{"losses don't use up the limit", step(3), finalizer.Attempt{Number: 6, Losses: 4, Outcome: finalizer.Failed, Failure: failedWith("")},
			tasker.StepWaitingForRetry, 2 * time.Second, 4, finalizer.ReasonBackoff, ""},
		{"nor do attempts from before an operator's retry", step(3), finalizer.Attempt{Number: 4, Forgiven: 3, Outcome: finalizer.Failed, Failure: failedWith("")},
			tasker.StepWaitingForRetry, time.Second, 0, finalizer.ReasonBackoff, ""},
		{"permanent failure", step(3), finalizer.Attempt{Number: 1, Outcome: finalizer.Failed, Failure: permanent},
			tasker.StepError, 0, 0, finalizer.ReasonPermanent, ""},
		{"not retryable", once, finalizer.Attempt{Number: 1, Outcome: finalizer.Failed, Failure: failedWith("5")},
			tasker.StepError, 0, 0, finalizer.ReasonNotRetryable, ""},
		{"a failure that nobody described", step(3), finalizer.Attempt{Number: 1, Outcome: finalizer.Failed},
			tasker.StepWaitingForRetry, time.Second, 0, finalizer.ReasonBackoff, ""},

		{"lost", step(3), finalizer.Attempt{Number: 1, Outcome: finalizer.Lost},
			tasker.StepWaitingForRetry, 0, 1, finalizer.ReasonLost, ""},
		{"lost on the last attempt", step(1), finalizer.Attempt{Number: 1, Outcome: finalizer.Lost},
			tasker.StepWaitingForRetry, 0, 1, finalizer.ReasonLost, ""},
		{"lost though not retryable", once, finalizer.Attempt{Number: 1, Outcome: finalizer.Lost},
			tasker.StepWaitingForRetry, 0, 1, finalizer.ReasonLost, ""},
		{"lost for the fifth time", step(3), finalizer.Attempt{Number: 5, Losses: 4, Outcome: finalizer.Lost},
			tasker.StepWaitingForRetry, 0, 5, finalizer.ReasonLost, ""},
		{"lost for the sixth time", step(3), finalizer.Attempt{Number: 6, Losses: 5, Outcome: finalizer.Lost},
			tasker.StepError, 0, 6, finalizer.ReasonLostTooOften, ""},

		{"a wish replaces the backoff, shorter or longer", step(9), finalizer.Attempt{Number: 8, Outcome: finalizer.Failed, Failure: failedWith("0.5")},
			tasker.StepWaitingForRetry, 500 * time.Millisecond, 0, finalizer.ReasonRetryAfter, ""},
		{"a wish beyond the policy's cap", step(3), finalizer.Attempt{Number: 1, Outcome: finalizer.Failed, Failure: failedWith("86400")},
			tasker.StepWaitingForRetry, time.Hour, 0, finalizer.ReasonRetryAfter, "retry_after 86400 was cut"},
		{"a wish that can't be read", step(3), finalizer.Attempt{Number: 1, Outcome: finalizer.Failed, Failure: failedWith(`"soon"`)},
			tasker.StepWaitingForRetry, time.Second, 0, finalizer.ReasonBackoff, `retry_after "soon" was ignored`},
		{"a wish that goes on and on", step(3), finalizer.Attempt{Number: 1, Outcome: finalizer.Failed, Failure: failedWith(`"` + strings.Repeat("later ", 99) + `"`)},
			tasker.StepWaitingForRetry, time.Second, 0, finalizer.ReasonBackoff, "later l… was ignored"},
		{"no wish", step(3), finalizer.Attempt{Number: 1, Outcome: finalizer.Failed, Failure: failedWith("null")},
			tasker.StepWaitingForRetry, time.Second, 0, finalizer.ReasonBackoff, ""},
		{"wishes aren't heard", deaf, finalizer.Attempt{Number: 1, Outcome: finalizer.Failed, Failure: failedWith("60")},
			tasker.StepWaitingForRetry, time.Second, 0, finalizer.ReasonBackoff, "retry_after_cap_seconds is 0"},
		{"a wish doesn't stretch the limit", step(1), finalizer.Attempt{Number: 1, Outcome: finalizer.Failed, Failure: failedWith("60")},
			tasker.StepError, 0, 0, finalizer.ReasonLastAttempt, ""},
	} {
		d := finalizer.DecideAttempt(c.step, c.attempt, now, middle)
		if d.State != c.state || d.Delay != c.delay || d.Losses != c.losses || d.Reason != c.reason {
			t.Errorf("%s: %s after %v, %d losses, %s", c.name, d.State, d.Delay, d.Losses, d.Reason)
		}
		if !strings.Contains(d.Note, c.note) || (d.Note == "") != (c.note == "") {
			t.Errorf("%s: note %q, want %q", c.name, d.Note, c.note)
		}
		if (d.Failure == nil) != (c.state == tasker.StepComplete) {
			t.Errorf("%s: failure %+v", c.name, d.Failure)
		}
	}
}

func TestALossIsExplained(t *testing.T) {
	d := finalizer.DecideAttempt(step(3), finalizer.Attempt{Number: 2, Outcome: finalizer.Lost}, now, middle)
	if f := d.Failure; f.Code != tasker.CodeAttemptLost || f.Attempt != 2 || f.Handler != "billing.charge" || !strings.Contains(f.Message, "attempt 2 was lost") {
		t.Errorf("%+v", f)
	}
	d = finalizer.DecideAttempt(&tasker.StepTemplate{HandlerClass: "Billing::Charge"}, finalizer.Attempt{Number: 6, Losses: 5, Outcome: finalizer.Lost}, now, middle)
	f := d.Failure
	if f.Code != tasker.CodeAttemptLost || f.Handler != "Billing::Charge" {
		t.Errorf("%+v", f)
	}
	for _, part := range []string{"6 attempts were lost", "5 are borne", "then retry the step"} {
		if !strings.Contains(f.Message, part) {
			t.Errorf("the message lacks %q: %s", part, f.Message)
		}
	}
}

// Whatever happens to a step, it ends, and never before its limit unless it has
// to.
func TestRetriesAreBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := step(rapid.IntRange(-1, 10).Draw(t, "limit"))
		s.Retryable = rapid.Bool().Draw(t, "retryable")
		losses, failures := 0, 0
		for number := 1; ; number++ {
			if number > 10+finalizer.MaxLosses+1 {
				t.Fatal("the step runs for ever")
			}
			a := finalizer.Attempt{Number: number, Losses: losses, Outcome: finalizer.Lost}
			if rapid.Bool().Draw(t, "fails") {
				a.Outcome, a.Failure = finalizer.Failed, failedWith("")
				failures++
			}
			d := finalizer.DecideAttempt(s, a, now, rapid.Float64Range(0, 1).Draw(t, "draw"))
			if d.Losses < losses || d.Losses > losses+1 {
				t.Fatalf("%d losses become %d", losses, d.Losses)
			}
			losses = d.Losses
			exhausted := failures >= s.AttemptLimit() || losses > finalizer.MaxLosses
			if exhausted != (d.State == tasker.StepError) {
				t.Fatalf("%s after %d failures of %d and %d losses", d.State, failures, s.AttemptLimit(), losses)
			}
			if exhausted {
				return
			}
			if d.State != tasker.StepWaitingForRetry {
				t.Fatalf("a failed attempt leads to %s", d.State)
			}
		}
	})
}

func TestADecisionIsATransitionThatAReportMayMake(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := finalizer.Attempt{
			Number:   rapid.Int().Draw(t, "number"),
			Losses:   rapid.IntRange(-10, 10).Draw(t, "losses"),
			Forgiven: rapid.IntRange(-10, 10).Draw(t, "forgiven"),
			Outcome:  finalizer.Outcome(rapid.IntRange(0, 5).Draw(t, "outcome")),
		}
		if rapid.Bool().Draw(t, "described") {
			a.Failure = failedWith(rapid.String().Draw(t, "retry after"))
			a.Failure.Permanent = rapid.Bool().Draw(t, "permanent")
		}
		s := step(rapid.Int().Draw(t, "limit"))
		s.Retry = anyPolicy(t)
		d := finalizer.DecideAttempt(s, a, now, rapid.Float64().Draw(t, "draw"))
		if !tasker.StepInProgress.CanBecome(d.State) || !tasker.StepEnqueued.CanBecome(d.State) {
			t.Fatalf("no attempt ends in %s", d.State)
		}
		if d.Delay < 0 || (d.Delay > 0 && d.State != tasker.StepWaitingForRetry) {
			t.Fatalf("a delay of %v in %s", d.Delay, d.State)
		}
		if most := max(s.Retry.Cap, s.Retry.RetryAfterCap, tasker.DefaultRetryPolicy().RetryAfterCap); d.Delay > most.Duration() {
			t.Fatalf("a delay of %v, and the caps are %+v", d.Delay, s.Retry)
		}
	})
}
