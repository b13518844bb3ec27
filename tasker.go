// Package tasker is the vocabulary of the workflow engine: task, step,
// template, attempt, event, error, and the states that tasks and steps move
// through. It imports nothing but the standard library, and every other
// package speaks its words.
//
// Who decides what: dag says which steps may start, finalizer says what a
// finished attempt or a drained task means, orchestrator carries that out, and
// the SQL functions in migrations make each write atomic and refuse what is
// stale or illegal. Postgres is the only truth; River, Redis and the memory of
// a worker are ways to be quick about it.
package tasker

import (
	"encoding/json"
	"time"
)

// Template is a named, versioned workflow: a DAG of steps. It is immutable
// once a task has used it, and a task keeps the template it started with.
//
// The JSON keys are those of the YAML files that templates are written in.
type Template struct {
	Namespace        string          `json:"namespace_name"`
	Name             string          `json:"name"`
	Version          string          `json:"version"` // MAJOR.MINOR.PATCH
	Description      string          `json:"description,omitempty"`
	TaskHandlerClass string          `json:"task_handler_class,omitempty"` // a Ruby class, for the gem; the engine ignores it
	Schema           json.RawMessage `json:"schema,omitempty"`             // JSON Schema of the context
	MaxParallelSteps int             `json:"max_parallel_steps"`
	OnFailure        OnFailure       `json:"on_failure,omitempty"`       // empty: continue
	Deadline         Seconds         `json:"deadline_seconds,omitempty"` // of a task, from its enqueueing or run_at; 0: none
	Idempotency      Idempotency     `json:"idempotency,omitempty"`      // empty: key
	Steps            []StepTemplate  `json:"step_templates"`
}

// FullName is namespace/name@version.
func (t *Template) FullName() string { return t.Namespace + "/" + t.Name + "@" + t.Version }

// StepTemplate is one node of a template's DAG.
type StepTemplate struct {
	Name          string          `json:"name"`
	Description   string          `json:"description,omitempty"`
	HandlerClass  string          `json:"handler_class,omitempty"` // a Ruby class, run by Sidekiq
	Handler       string          `json:"handler,omitempty"`       // a Go handler, run by the worker; exactly one of the two is set
	DependsOn     []string        `json:"depends_on_steps,omitempty"`
	Retryable     bool            `json:"default_retryable"`   // false: one attempt, whatever the limit says
	RetryLimit    int             `json:"default_retry_limit"` // attempts, not retries; at least 1
	Retry         RetryPolicy     `json:"retry"`
	Timeout       Seconds         `json:"timeout_seconds,omitempty"`           // start to close; 0: none
	StartTimeout  Seconds         `json:"schedule_to_start_seconds,omitempty"` // how long an attempt may lie in Sidekiq's queue; 0: for ever
	Heartbeat     Seconds         `json:"heartbeat_seconds,omitempty"`         // the longest time between two heartbeats; 0: none are asked for
	LimitKey      string          `json:"limit_key,omitempty"`                 // steps with the same one share the limits of that key
	Queue         string          `json:"queue,omitempty"`                     // Sidekiq queue; empty: "default"
	HandlerConfig json.RawMessage `json:"handler_config,omitempty"`
	Skippable     bool            `json:"skippable,omitempty"`     // failed for good, it is skipped: the task goes on without its result
	Bypassable    bool            `json:"bypassable,omitempty"`    // a task may leave it out, by naming it in bypass_steps
	ResultSchema  json.RawMessage `json:"result_schema,omitempty"` // JSON Schema of the result; one that doesn't fit fails the attempt for good
}

// OnFailure says what a task does with its other branches once a step has
// failed for good.
type OnFailure string

// Independent branches go on, which is the default, or nothing new starts.
const (
	Continue OnFailure = "continue"
	FailFast OnFailure = "fail_fast"
)

// BuiltinHandlers are the Go handlers that a worker brings. No other name begins with "tasker.".
var BuiltinHandlers = []string{"tasker.echo", "tasker.fail", "tasker.http", "tasker.sleep"}

// Idempotency says what makes two tasks of a template the same task, when they
// come without an idempotency_key of their own.
type Idempotency string

// Nothing does, which is the default, or the same context.
const (
	IdempotentByKey     Idempotency = "key"
	IdempotentByContext Idempotency = "context"
)

// AttemptLimit is the number of attempts that a step may use up.
func (s *StepTemplate) AttemptLimit() int {
	if !s.Retryable || s.RetryLimit < 1 {
		return 1
	}
	return s.RetryLimit
}

// Backoff names the growth of the delay between attempts.
type Backoff string

// The backoff policies.
const (
	BackoffNone        Backoff = "none"
	BackoffFixed       Backoff = "fixed"
	BackoffLinear      Backoff = "linear"
	BackoffExponential Backoff = "exponential"
	BackoffFibonacci   Backoff = "fibonacci"
)

// RetryPolicy says how long to wait before the next attempt.
type RetryPolicy struct {
	Backoff       Backoff `json:"backoff"`
	Base          Seconds `json:"base_seconds"`
	Cap           Seconds `json:"cap_seconds"`
	Jitter        float64 `json:"jitter"`                  // share of the delay, 0 to 1: 0.1 is ±10 %
	RetryAfterCap Seconds `json:"retry_after_cap_seconds"` // for a delay that the called system asked for
}

// DefaultRetryPolicy is exponential from 1 s, doubled, capped at 300 s, ±10 %.
// A Retry-After is honoured up to one hour.
func DefaultRetryPolicy() RetryPolicy {
	return RetryPolicy{Backoff: BackoffExponential, Base: 1, Cap: 300, Jitter: 0.1, RetryAfterCap: 3600}
}

// Seconds is a duration as people write it in templates: seconds, with a
// fraction where needed.
type Seconds float64

// Duration converts to a time.Duration, saturating at its largest value.
func (s Seconds) Duration() time.Duration {
	const most = float64(1<<63 - 1)
	d := float64(s) * float64(time.Second)
	if d >= most {
		return 1<<63 - 1
	}
	return time.Duration(d)
}

// Failure is what is kept of a failed attempt, in tasker.steps.error. It
// crosses languages: contract/failure.json holds an example.
type Failure struct {
	Class      string          `json:"class"`   // Ruby exception class, Go error type, or a word of ours such as "attempt_lost"
	Message    string          `json:"message"` // at most 10,000 characters
	Backtrace  []string        `json:"backtrace,omitempty"`
	Cause      string          `json:"cause,omitempty"` // class of the cause, where there is one
	Code       string          `json:"code,omitempty"`  // a word for programs, such as "handler_not_found"
	Permanent  bool            `json:"permanent,omitempty"`
	RetryAfter json.RawMessage `json:"retry_after,omitempty"` // a number of seconds, or the text of a Retry-After header
	Context    json.RawMessage `json:"context,omitempty"`     // what the handler added
	Attempt    int             `json:"attempt"`
	Handler    string          `json:"handler,omitempty"`
}

// Codes of failures that the engine itself makes.
const (
	CodeHandlerNotFound       = "handler_not_found"
	CodeAttemptLost           = "attempt_lost" // the process that ran it died
	CodeAttemptTimeout        = "attempt_timeout"
	CodeStartTimeout          = "schedule_to_start_timeout" // it lay in its queue for too long
	CodeHeartbeatTimeout      = "heartbeat_timeout"
	CodeTaskDeadline          = "task_deadline" // the task's time was up
	CodeHandlerPanicked       = "handler_panicked"
	CodeResultNotSerializable = "result_not_serializable"
	CodeResultTooLarge        = "result_too_large"
	CodeResultSchema          = "result_schema" // it does not fit the step's result_schema
)

// Limits on what is stored. They keep one task from harming the others; both
// are far above what belongs into a workflow (store a reference instead).
const (
	MaxContextBytes  = 1 << 20
	MaxResultBytes   = 4 << 20
	MaxProgressBytes = 64 << 10
	MaxSteps         = 10_002 // 1 → 10,000 → 1
)
