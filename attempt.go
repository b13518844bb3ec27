package tasker

import (
	"encoding/json"
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
	Timeout       time.Duration              // start to close; 0: none
	Context       json.RawMessage            // the task's context: a JSON object
	Config        json.RawMessage            // handler_config of the step: a JSON object, or nil
	Dependencies  map[string]json.RawMessage // results of the direct dependencies by step name; null for one that was skipped
}

// Last reports whether a failure of this attempt is final.
func (a *Attempt) Last() bool { return a.Used >= a.Limit }

// Dispatch names an attempt that is to be run by Sidekiq.
type Dispatch struct {
	TaskID  int64
	StepID  int64
	Attempt int
	Handler string // Ruby class, for people who look at the queue
	Queue   string
}
