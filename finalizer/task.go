package finalizer

import (
	"fmt"
	"strings"
	"time"
)

// Standing is how a task's steps stand between two rounds of its loop. Each
// step that isn't finished is counted in one of Ready, Outstanding and
// Retrying, or can't move as things stand (dag.Progress knows).
type Standing struct {
	Ready         int       // may start now: viable, or waiting for a retry whose delay is over
	Outstanding   int       // an attempt is out
	Retrying      int       // waiting for a retry whose delay isn't over
	EarliestRetry time.Time // when the first of Retrying is due
	Unfinished    int       // all steps that are neither satisfied nor in error nor cancelled
	Failed        []string  // names of the steps in error, in template order
	Cancelled     []string  // names of the cancelled steps, in template order
	FailFast      bool      // on_failure: fail_fast; nothing new starts once a step is in error
}

// TaskOutcome says what a task does next.
type TaskOutcome int

// The outcomes.
const (
	TaskComplete TaskOutcome = iota + 1 // every step is satisfied
	TaskFailed                          // nothing can move any more
	RetryViable                         // nothing to do until the earliest retry is due
	Waiting                             // nothing to do until a result comes
	HasReady                            // something can start now
)

// String is the outcome in words.
func (o TaskOutcome) String() string {
	switch o {
	case TaskComplete:
		return "complete"
	case TaskFailed:
		return "failed"
	case RetryViable:
		return "retry viable"
	case Waiting:
		return "waiting"
	case HasReady:
		return "has ready steps"
	default:
		return fmt.Sprintf("TaskOutcome(%d)", int(o))
	}
}

// TaskDecision is what to do with a task.
type TaskDecision struct {
	Outcome TaskOutcome
	RetryAt time.Time     // when the earliest retry is due, for RetryViable and Waiting; zero when none waits
	Delay   time.Duration // from now until RetryAt, never negative
	Steps   []string      // of TaskFailed: the steps that brought it down
	Message string        // of TaskFailed: what an operator reads
}

// DecideTask decides over a task, by the first rule that applies:
//
//  1. A step may start: HasReady. Also when others have failed: independent
//     branches go on, because their work is wanted all the same once the failed
//     step is mended. (With FailFast, rules 1 and 3 are left out once a step
//     has failed.)
//  2. An attempt is out: Waiting. Its result may make others ready, so nothing
//     is final before it is in. RetryAt is given, since a retry may be due
//     earlier.
//  3. A step waits for its retry: RetryViable, with the delay until the
//     earliest. The earliest, not the latest: a step waits for its own delay,
//     never for another's.
//  4. A step is in error: TaskFailed, naming those. All that is unfinished now
//     stands behind them.
//  5. A step is cancelled: TaskFailed, naming those. Whoever cancels a step says
//     that its work wasn't done, so the task can't claim to be complete, and
//     steps behind it will never run; a task that neither completed nor failed
//     would hang for ever. Who wants a task to go on without a step skips it.
//  6. Every step is finished: TaskComplete.
//  7. Steps are unfinished and nothing can move them. No states that the engine
//     writes lead here. TaskFailed, with a message that says so: an operator
//     sees and mends a failed task, and nobody sees one that hangs.
func DecideTask(s Standing, now time.Time) TaskDecision {
	stopping := s.FailFast && len(s.Failed) > 0
	waiting := s.Retrying > 0 && !stopping
	switch {
	case s.Ready > 0 && !stopping:
		return TaskDecision{Outcome: HasReady}
	case s.Outstanding > 0 && waiting:
		return until(Waiting, s.EarliestRetry, now)
	case s.Outstanding > 0:
		return TaskDecision{Outcome: Waiting}
	case waiting:
		return until(RetryViable, s.EarliestRetry, now)
	case len(s.Failed) > 0:
		return failed(s.Failed, "failed")
	case len(s.Cancelled) > 0:
		return failed(s.Cancelled, "cancelled")
	case s.Unfinished == 0:
		return TaskDecision{Outcome: TaskComplete}
	default:
		return TaskDecision{Outcome: TaskFailed, Message: fmt.Sprintf(
			"%d unfinished steps can't move, though no step failed or was cancelled: their states contradict one another; "+
				"look at the task's events, then resolve or cancel these steps", s.Unfinished)}
	}
}

func until(outcome TaskOutcome, at, now time.Time) TaskDecision {
	return TaskDecision{Outcome: outcome, RetryAt: at, Delay: max(at.Sub(now), 0)}
}

func failed(steps []string, how string) TaskDecision {
	const most = 10 // names in the message; Steps has them all
	noun, list := "steps", strings.Join(steps[:min(len(steps), most)], ", ")
	if len(steps) == 1 {
		noun = "step"
	}
	if more := len(steps) - most; more > 0 {
		list += fmt.Sprintf(" and %d more", more)
	}
	return TaskDecision{
		Outcome: TaskFailed,
		Steps:   steps,
		Message: fmt.Sprintf("%d %s %s: %s", len(steps), noun, how, list),
	}
}
