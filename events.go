package tasker

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

	EventTaskReenqueued EventName = "workflow.task_reenqueue_delayed" // a River job was scheduled for later
	EventReportRefused  EventName = "step.report_refused"             // a result came for an attempt that is not current
)
