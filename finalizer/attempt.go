package finalizer

import (
	"cmp"
	"fmt"
	"time"

	"github.com/taskerhq/tasker"
)

// MaxLosses is how many attempts of one step may be lost to infrastructure,
// unless an Attempt says otherwise.
// Losses don't use up the step's own limit, because they are not its fault.
// But a step that kills whatever runs it (memory, a crash in native code) looks
// just the same from outside, and must not do so for ever.
const MaxLosses = 5

// Outcome says how an attempt ended.
type Outcome int

// The ways in which an attempt ends. A timeout, a panic and a missing handler
// are failures like any other: they carry a tasker.Failure with their code.
const (
	Succeeded Outcome = iota + 1
	Failed
	Lost // the process that ran it died, or its Sidekiq job exists nowhere any more
)

// Attempt is what became of a step's current attempt.
type Attempt struct {
	Number   int // from 1; every attempt counts, also those that were lost
	Losses   int // how many of the attempts before this one were lost
	Forgiven int // how many of the attempts before this one an operator's retry struck off; Losses leaves these out
	Outcome  Outcome
	Failure  *tasker.Failure // of an attempt that failed

	MaxLosses int // how many lost attempts are borne; 0: MaxLosses
}

// Used is how many attempts count against the step's limit, this one included:
// at least 1.
func (a Attempt) Used() int { return max(1, a.Number-a.Losses-a.Forgiven) }

// Reason is a word for why an attempt was decided as it was, for events and
// logs.
type Reason string

// The reasons.
const (
	ReasonSucceeded    Reason = "succeeded"
	ReasonPermanent    Reason = "permanent"      // the handler says that another attempt can't help
	ReasonNotRetryable Reason = "not_retryable"  // the template allows one attempt
	ReasonLastAttempt  Reason = "last_attempt"   // the limit is used up
	ReasonBackoff      Reason = "backoff"        // again, after the policy's delay
	ReasonRetryAfter   Reason = "retry_after"    // again, when the called system asked for it
	ReasonLost         Reason = "lost"           // again, at once
	ReasonLostTooOften Reason = "lost_too_often" // more than MaxLosses
)

// AttemptDecision is what to do with a step whose attempt ended.
type AttemptDecision struct {
	State   tasker.StepState // complete, waiting_for_retry or error; instead of error skipped, if the step is skippable
	Delay   time.Duration    // until the next attempt; 0 unless State is waiting_for_retry
	Losses  int              // to be stored with the step
	Failure *tasker.Failure  // to be stored with the step; nil when it completed
	Reason  Reason
	Note    string // what was ignored or cut on the way, for the operator; mostly empty
}

// DecideAttempt decides over the attempt that just ended, by the first rule
// that applies:
//
//  1. It succeeded: complete.
//  2. It was lost: again at once, under a new number, whatever the step's limit
//     and default_retryable say; after MaxLosses, error. (Attempts run at least
//     once: a handler has to bear that, also one that isn't retryable.)
//  3. The failure is permanent: error at once.
//  4. The limit is used up: error. A step that is not retryable has a limit of
//     one, so its first attempt always runs.
//  5. The failure carries a Retry-After that can be read: again after that,
//     capped by the policy's RetryAfterCap. It replaces the backoff and has no
//     jitter: the called system chose that time. A cap of 0 refuses all such
//     wishes.
//  6. Again after Backoff.
//
// draw is a random number from 0 up to 1.
func DecideAttempt(step *tasker.StepTemplate, a Attempt, now time.Time, draw float64) AttemptDecision {
	switch a.Outcome {
	case Succeeded:
		return AttemptDecision{State: tasker.StepComplete, Losses: a.Losses, Reason: ReasonSucceeded}
	case Lost:
		return decideLoss(step, a)
	case Failed:
	default: // not a word of ours; the attempt did end, and not well
	}

	failure, used, limit := a.Failure, a.Used(), step.AttemptLimit()
	if failure == nil {
		failure = unexplained(step, a)
	}
	d := AttemptDecision{State: givenUp(step), Losses: a.Losses, Failure: failure}
	switch {
	case failure.Permanent:
		d.Reason = ReasonPermanent
		return d
	case !step.Retryable:
		d.Reason = ReasonNotRetryable
		return d
	case used >= limit:
		d.Reason = ReasonLastAttempt
		return d
	}

	d.State = tasker.StepWaitingForRetry
	policy := orDefault(step.Retry)
	if asked, note, ok := retryAfter(failure.RetryAfter, policy.RetryAfterCap, now); ok {
		d.Delay, d.Note, d.Reason = asked, note, ReasonRetryAfter
	} else {
		d.Delay, d.Note, d.Reason = Backoff(policy, used, draw), note, ReasonBackoff
	}
	return d
}

func decideLoss(step *tasker.StepTemplate, a Attempt) AttemptDecision {
	d := AttemptDecision{
		State:  tasker.StepWaitingForRetry,
		Losses: a.Losses + 1,
		Reason: ReasonLost,
		Failure: &tasker.Failure{
			Class:   tasker.CodeAttemptLost,
			Code:    tasker.CodeAttemptLost,
			Attempt: a.Number,
			Handler: handlerOf(step),
			Message: fmt.Sprintf("attempt %d was lost: the process that ran it died, or its job was; a new attempt follows, and the step's limit is not touched", a.Number),
		},
	}
	most := cmp.Or(a.MaxLosses, MaxLosses)
	if d.Losses > most {
		d.State, d.Reason = givenUp(step), ReasonLostTooOften
		d.Failure.Message = fmt.Sprintf(
			"%d attempts were lost, and %d are borne: each time the process that ran one died, or its job was lost. "+
				"Look for what kills it (out of memory, a crash in native code, a deployment that doesn't wait for running jobs), then retry the step",
			d.Losses, most)
	}
	return d
}

// givenUp is the state of a step that no attempt will mend: in error, or
// skipped, when the template says that the task can do without it.
func givenUp(step *tasker.StepTemplate) tasker.StepState {
	if step.Skippable {
		return tasker.StepSkipped
	}
	return tasker.StepError
}

// unexplained stands in for a failure that nobody described, so that the step's
// row is never in error without a reason.
func unexplained(step *tasker.StepTemplate, a Attempt) *tasker.Failure {
	return &tasker.Failure{
		Class:   "unexplained",
		Message: "the handler reported a failure without saying which",
		Attempt: a.Number,
		Handler: handlerOf(step),
	}
}

func handlerOf(step *tasker.StepTemplate) string {
	if step.Handler != "" {
		return step.Handler
	}
	return step.HandlerClass
}
