package tasker

import (
	"encoding/json"
	"time"
)

// EventName names a durable record in tasker.events. One is written with each
// transition, in its transaction.
type EventName string

// The events of transitions, and the few others that the engine records.
const (
	EventTaskInitialized EventName = "task.initialize_requested" // inserted: pending
	EventTaskStarted     EventName = "task.start_requested"      // → in_progress
	EventTaskCompleted   EventName = "task.completed"
	EventTaskFailed      EventName = "task.failed"
	EventTaskCancelled   EventName = "task.cancelled"
	EventTaskResolved    EventName = "task.resolved_manually"
	EventTaskRetried     EventName = "task.retry_requested" // error → in_progress, by an operator
	EventTaskPaused      EventName = "task.paused"
	EventTaskResumed     EventName = "task.resumed"
	EventTaskRunNow      EventName = "task.run_now"
	EventTaskPriority    EventName = "task.priority_changed"
	EventTaskContext     EventName = "task.context_replaced"         // by an operator, with a retry
	EventTaskStale       EventName = "task.stale"                    // listed: nothing has happened to it for long
	EventTaskDeadLetter  EventName = "task.dead_lettered"            // listed: it is in error
	EventTaskAcknowledge EventName = "task.dead_letter_acknowledged" // taken off the list by an operator

	EventStepEnqueued  EventName = "step.execution_requested" // → enqueued
	EventStepStarted   EventName = "step.handle"              // → in_progress
	EventStepCompleted EventName = "step.completed"
	EventStepRetry     EventName = "step.retry_requested" // → waiting_for_retry
	EventStepFailed    EventName = "step.failed"          // → error
	EventStepCancelled EventName = "step.cancelled"
	EventStepSkipped   EventName = "step.skipped"
	EventStepResolved  EventName = "step.resolved_manually"
	EventStepReset     EventName = "step.initialize_requested" // → pending, by an operator
	EventStepRunNow    EventName = "step.run_now"

	EventGateLimited EventName = "gate.limited" // of no task: an operator has set or lifted limits
	EventGatePaused  EventName = "gate.paused"
	EventGateResumed EventName = "gate.resumed"

	EventWebhookSet     EventName = "workflow.webhook_set" // of no task: an operator has made or changed a webhook
	EventWebhookRemoved EventName = "workflow.webhook_removed"

	EventTaskReenqueued EventName = "workflow.task_reenqueue_delayed" // a River job was scheduled for later
	EventReportRefused  EventName = "step.report_refused"             // a result came for an attempt that is not current
)

// Event is a row of tasker.events, with what is known of its task and step. An
// event of the engine's has a task, but for those of gates and webhooks; a published one need not.
type Event struct {
	ID            int64           `json:"id"`
	OccurredAt    time.Time       `json:"occurred_at"` // when its transaction began
	Name          EventName       `json:"name"`
	TaskID        int64           `json:"task_id,omitempty"`
	StepID        int64           `json:"step_id,omitempty"`
	StepName      string          `json:"step_name,omitempty"`
	Attempt       int             `json:"attempt,omitempty"`
	Namespace     string          `json:"namespace,omitempty"`
	TaskName      string          `json:"task_name,omitempty"`
	TaskVersion   string          `json:"task_version,omitempty"`
	CorrelationID string          `json:"correlation_id,omitempty"`
	ParentTaskID  int64           `json:"parent_task_id,omitempty"`
	Data          json.RawMessage `json:"data,omitempty"` // an object; empty: the event carries nothing
	Version       int             `json:"version"`        // EventsVersion; of an app's own event, too
}
