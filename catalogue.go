package tasker

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

//go:generate go test . -run TestTheTableOfEventsIsCurrent -update

// EventsVersion is the version of the engine's events. Within a version, fields are
// added and never change their meaning or go; readers skip what they don't know.
const EventsVersion = 1

// EventKind describes the events of one name.
type EventKind struct {
	Name   EventName    `json:"name"`
	Also   string       `json:"also,omitempty"` // a second name in Ruby, for what it means to an app
	When   string       `json:"when"`
	Of     EventSubject `json:"of"`
	Fields []EventField `json:"fields"` // of its data
}

// EventSubject is what an event is about.
type EventSubject string

// An attempt's events have a step and a task, too, and a step's a task.
const (
	OfTask    EventSubject = "task"
	OfStep    EventSubject = "step"
	OfAttempt EventSubject = "attempt"
	OfGate    EventSubject = "gate"
	OfWebhook EventSubject = "webhook"
)

// EventField is a member of an event's data.
type EventField struct {
	Name     string `json:"name"`
	Type     string `json:"type"` // string, integer, number, strings, object
	Unit     string `json:"unit,omitempty"`
	Is       string `json:"is"`
	Optional bool   `json:"optional,omitempty"`
}

func field(name, kind, is string) EventField    { return EventField{Name: name, Type: kind, Is: is} }
func optional(name, kind, is string) EventField { return EventField{name, kind, "", is, true} }

func fields(groups ...[]EventField) []EventField { return slices.Concat(groups...) }

var (
	login      = optional("login", "string", "of Postgres, that did it") // optional: events from before migration 42 have none
	byOperator = []EventField{optional("by", "string", "who did it, in their words"), optional("reason", "string", "why, in their words"), login}
	// Both contexts where they are small, else their hashes.
	ofContext = []EventField{
		optional("from", "object", "the context before, if both have at most 4096 bytes"), optional("to", "object", "the context now"),
		optional("from_sha256", "string", "of the context before as text, if one is larger"), optional("from_bytes", "integer", "of that text"),
		optional("to_sha256", "string", "of the context now"), optional("to_bytes", "integer", "of that text"),
	}
	ofFailure = []EventField{
		optional("class", "string", "of the error"), optional("message", "string", "of the error, its first 500 characters"),
		optional("code", "string", "what an app's code, or the engine, calls the failure"),
	}
	listed = []EventField{
		field("dead_letter_id", "integer", "under which it is listed"), field("reason", "string", "why"),
		{Name: "since", Type: "string", Unit: "time, ISO 8601", Is: "since when nothing has happened, or it is in error"},
		optional("detail", "string", "what is known of it"),
	}
	gate = []EventField{field("scope", "string", "template, handler, queue or key"), field("name", "string", "of what is limited")}
)

// EventCatalogue lists the engine's events. Events of an app's own are not in it.
var EventCatalogue = []EventKind{
	{EventTaskInitialized, "task.enqueue", "a task was inserted, and will run", OfTask, []EventField{
		optional("correlation_id", "string", "of the task"), optional("parent_task_id", "integer", "the task that enqueued it"),
	}},
	{EventTaskStarted, "", "a worker has taken it: `in_progress`", OfTask, nil},
	{EventTaskCompleted, "", "all its steps have ended well: `complete`", OfTask, nil},
	{EventTaskFailed, "", "it can't go on: `error`", OfTask, []EventField{
		field("message", "string", "what it failed of"), field("steps", "strings", "names of the steps that failed"), optional("code", "string", "`task_deadline`: its deadline has passed"),
	}},
	{EventTaskCancelled, "", "an operator ended it: `cancelled`", OfTask, byOperator},
	{EventTaskResolved, "", "an operator settled it: `resolved_manually`", OfTask, byOperator},
	{EventTaskRetried, "", "an operator retries a failed task: `in_progress`", OfTask, byOperator},
	{EventTaskPaused, "", "an operator halts it", OfTask, byOperator},
	{EventTaskResumed, "", "an operator lets it go on", OfTask, byOperator},
	{EventTaskRunNow, "", "an operator cut its waiting short", OfTask, byOperator},
	{EventTaskPriority, "", "an operator changed its priority", OfTask, fields(byOperator, []EventField{field("from", "integer", "1 to 4"), field("to", "integer", "1 to 4")})},
	{EventTaskContext, "", "an operator replaced its context", OfTask, fields(byOperator, ofContext)},
	{EventTaskStale, "", "nothing has happened to it for long, and it is listed", OfTask, listed},
	{EventTaskDeadLetter, "", "it is in error, and listed", OfTask, listed},
	{EventTaskAcknowledge, "", "an operator has taken it off the list", OfTask, byOperator},
	{EventTaskReenqueued, "task.reenqueue", "it waits: for a retry, or its time", OfTask, []EventField{{Name: "delay_seconds", Type: "number", Unit: "s", Is: "until it is looked at again"}}},

	{EventStepEnqueued, "", "an attempt is on its way to Sidekiq: `enqueued`", OfAttempt, nil},
	{EventStepStarted, "", "an attempt runs: `in_progress`", OfAttempt, nil},
	{EventStepCompleted, "", "an attempt succeeded: `complete`", OfAttempt, nil},
	{EventStepRetry, "", "an attempt failed, another will follow: `waiting_for_retry`", OfAttempt, fields(ofFailure, []EventField{{Name: "retry_in_seconds", Type: "number", Unit: "s", Is: "until then", Optional: true}})},
	{EventStepFailed, "", "no attempt is left: `error`", OfAttempt, ofFailure},
	{EventStepCancelled, "", "its task was cancelled: `cancelled`", OfStep, fields(byOperator, ofFailure)},
	{EventStepSkipped, "", "it is done without: `skipped`", OfStep, fields(byOperator, ofFailure)},
	{EventStepResolved, "", "an operator gave its result: `resolved_manually`", OfStep, byOperator},
	{EventStepReset, "", "an operator retries it: `pending` again", OfStep, byOperator},
	{EventStepRunNow, "", "an operator cut its waiting short", OfStep, byOperator},
	{EventReportRefused, "", "a result came for an attempt that is not current", OfAttempt, []EventField{field("reason", "string", "why it was refused"), field("outcome", "string", "what was reported")}},

	{EventGateLimited, "", "an operator has set or lifted limits", OfGate, fields(gate, byOperator, []EventField{
		optional("max_attempts", "integer", "attempts out at once"), optional("per_second", "number", "attempts that start a second"), optional("burst", "number", "attempts that may start at once"),
	})},
	{EventGatePaused, "", "an operator lets nothing pass", OfGate, fields(gate, byOperator)},
	{EventGateResumed, "", "an operator ended that", OfGate, fields(gate, byOperator)},

	{EventWebhookSet, "", "an operator has made or changed a webhook", OfWebhook, []EventField{
		field("name", "string", "of the webhook"), field("host", "string", "of its URL"), field("patterns", "strings", "of events that it gets"),
		field("secret_env", "string", "the variable with its secret"), optional("by", "string", "who did it, in their words"), login,
	}},
	{EventWebhookRemoved, "", "an operator has removed a webhook", OfWebhook, []EventField{field("name", "string", "of the webhook"), login}},
}

// Engine says that a name is the engine's to use, whether it is in the catalogue or not.
func (n EventName) Engine() bool {
	for _, first := range []string{"task.", "step.", "workflow.", "gate."} {
		if strings.HasPrefix(string(n), first) {
			return true
		}
	}
	return false
}

// Check holds an event against the catalogue: its name, what it is about, and the
// fields of its data. Events of an app's own are what they are.
func (e *Event) Check() error {
	if !e.Name.Engine() {
		return nil
	}
	at := slices.IndexFunc(EventCatalogue, func(k EventKind) bool { return k.Name == e.Name })
	if at < 0 {
		return fmt.Errorf("event %d is a %s, which is not in the catalogue", e.ID, e.Name)
	}
	kind := &EventCatalogue[at]
	var wrong []error
	is := func(ok bool, format string, args ...any) {
		if !ok {
			wrong = append(wrong, fmt.Errorf("event %d, %s: "+format, append([]any{e.ID, e.Name}, args...)...))
		}
	}
	is((e.TaskID != 0) == (kind.Of != OfGate && kind.Of != OfWebhook), "it is of task %d", e.TaskID)
	is((e.StepID != 0) == (kind.Of == OfStep || kind.Of == OfAttempt), "it is of step %d", e.StepID)
	is(kind.Of != OfAttempt || e.Attempt > 0, "it is of no attempt")
	var data map[string]any
	if len(e.Data) > 0 {
		if err := json.Unmarshal(e.Data, &data); err != nil {
			return fmt.Errorf("event %d, %s: data is no object: %w", e.ID, e.Name, err)
		}
	}
	for _, f := range kind.Fields {
		value, there := data[f.Name]
		is(there || f.Optional, "%s is missing", f.Name)
		is(!there || f.fits(value), "%s is %v, which is no %s", f.Name, value, f.Type)
		delete(data, f.Name)
	}
	for name := range data {
		// A failure of the engine's own is there as it is kept with the step.
		is(name == "attempt" || name == "permanent", "%s is not in the catalogue", name)
	}
	return errors.Join(wrong...)
}

func (f *EventField) fits(value any) bool {
	switch f.Type {
	case "string":
		_, ok := value.(string)
		return ok
	case "integer":
		n, ok := value.(float64)
		return ok && n == float64(int64(n))
	case "number":
		_, ok := value.(float64)
		return ok
	case "object":
		_, ok := value.(map[string]any)
		return ok
	default: // strings
		list, ok := value.([]any)
		return ok && !slices.ContainsFunc(list, func(v any) bool { _, ok := v.(string); return !ok })
	}
}
