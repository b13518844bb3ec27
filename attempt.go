package tasker

import (
	"encoding/json"
	"fmt"
	"time"
)

// Attempt is one try at a step, as a Go handler sees it.
type Attempt struct {
	TaskID        int64
	StepID        int64
	Template      string // namespace/name@version
	Step          string // the step's name
	Number        int    // numbers every try, from 1; with StepID the fence of its result
	Used          int    // attempts that count against Limit, this one included; those lost with a process don't
	Limit         int
	CorrelationID string
	// IdempotencyKey is the same for every attempt of the step: pass it to the service that
	// you call, so that a second attempt doesn't charge twice.
	IdempotencyKey string
	Timeout        time.Duration              // start to close; 0: none
	Context        json.RawMessage            // the task's context: a JSON object
	Config         json.RawMessage            // handler_config of the step: a JSON object, or nil
	Dependencies   map[string]json.RawMessage // results of the direct dependencies by step name; null for one that was skipped
	Progress       json.RawMessage            // what the last heartbeat of an earlier attempt carried; nil: none did

	// Beat is how Heartbeat reaches the engine. In a test of a handler it may be
	// left nil: heartbeats then go nowhere.
	Beat func(progress json.RawMessage) error
}

// Heartbeat says that the attempt gets on, and keeps how far it has come: any
// value that encoding/json can write, up to 64 KiB, or nil. The next attempt
// finds it in Progress. A step with heartbeat_seconds fails when none comes for
// that long. It is cheap: what is said more often than once a second is kept
// in memory until then.
//
// An error says that the progress can't be kept, or that the attempt's time is
// over (context.Canceled, context.DeadlineExceeded): stop.
func (a *Attempt) Heartbeat(progress any) error {
	var doc json.RawMessage
	if progress != nil {
		var err error
		if doc, err = json.Marshal(progress); err != nil {
			return fmt.Errorf("heartbeat: %w", err)
		}
		if problem := DocumentProblem(doc, MaxProgressBytes); problem != "" {
			return fmt.Errorf("heartbeat: the progress %s: store the data and carry a reference", problem)
		}
	}
	if a.Beat == nil {
		return nil
	}
	return a.Beat(doc)
}

// IdempotencyKey is what tasker.idempotency_key makes of the random number of a task and
// a step. seed nil: the task was made by an earlier version.
func IdempotencyKey(seed *int64, step int64) string {
	if seed == nil {
		return fmt.Sprintf("tasker-step-%d", step)
	}
	return fmt.Sprintf("tasker-%012x-%d", *seed, step)
}

// Last reports whether a failure of this attempt is final.
func (a *Attempt) Last() bool { return a.Used >= a.Limit }

// Dispatch names an attempt that is to be run by Sidekiq.
type Dispatch struct {
	TaskID        int64
	StepID        int64
	Attempt       int
	Handler       string // Ruby class, for people who look at the queue
	Queue         string
	CorrelationID string // of the task; empty: none

	// Alone: it gets a Sidekiq job of its own, because one of its clocks is shorter
	// than LeastShared, or because an attempt was lost before: perhaps it kills its
	// process, and perhaps it rode with one that does.
	Alone bool

	// Ticket goes with the job: without it the attempt does not start. 0: a worker of an
	// earlier version made the attempt, and there is none.
	Ticket int64
}

// LeastShared is the shortest timeout, and heartbeat, of an attempt that may
// share a Sidekiq job: it may take a second before somebody notices that it waits
// behind a slow one.
const LeastShared = 10 * time.Second
