package tasker

import "slices"

//go:generate go test . -run TestTheStateMachineDocumentIsCurrent -update

// TaskState is the state of a task. The words are stored as they are in
// tasker.tasks.state.
type TaskState string

// The states of a task.
const (
	TaskPending          TaskState = "pending"
	TaskInProgress       TaskState = "in_progress"
	TaskComplete         TaskState = "complete"
	TaskError            TaskState = "error"
	TaskCancelled        TaskState = "cancelled"
	TaskResolvedManually TaskState = "resolved_manually"
)

// StepState is the state of a step. The words are stored as they are in
// tasker.steps.state.
type StepState string

// The states of a step.
const (
	StepPending          StepState = "pending"
	StepEnqueued         StepState = "enqueued"    // pushed to Sidekiq, not yet started there
	StepInProgress       StepState = "in_progress" // an attempt runs
	StepWaitingForRetry  StepState = "waiting_for_retry"
	StepComplete         StepState = "complete"
	StepError            StepState = "error" // failed for good: permanent, or out of attempts
	StepCancelled        StepState = "cancelled"
	StepSkipped          StepState = "skipped"
	StepResolvedManually StepState = "resolved_manually"
)

// TaskTransitions is the one definition of how a task may move. The guard in
// SQL and the documentation are tested against it.
var TaskTransitions = map[TaskState][]TaskState{
	TaskPending:    {TaskInProgress, TaskError, TaskCancelled},
	TaskInProgress: {TaskComplete, TaskError, TaskCancelled},
	TaskError:      {TaskInProgress, TaskResolvedManually, TaskCancelled},
}

// StepTransitions is the one definition of how a step may move. The guard in
// SQL and the documentation are tested against it.
//
// A Go step skips enqueued. A report may arrive for an enqueued step, when the
// record of its start was lost or comes later.
var StepTransitions = map[StepState][]StepState{
	StepPending: {
		StepEnqueued, StepInProgress,
		StepCancelled, StepSkipped, StepResolvedManually,
	},
	StepEnqueued: {
		StepInProgress, StepComplete, StepWaitingForRetry, StepError,
		StepCancelled, StepSkipped, StepResolvedManually,
	},
	StepInProgress: {
		StepComplete, StepWaitingForRetry, StepError,
		StepCancelled, StepSkipped, StepResolvedManually,
	},
	StepWaitingForRetry: {
		StepEnqueued, StepInProgress,
		StepCancelled, StepSkipped, StepResolvedManually,
	},
	StepError: {
		StepPending,
		StepCancelled, StepSkipped, StepResolvedManually,
	},
}

// CanBecome reports whether a task in state s may move to next.
func (s TaskState) CanBecome(next TaskState) bool { return slices.Contains(TaskTransitions[s], next) }

// Finished reports whether the engine is done with a task in this state. Only
// an operator moves it from here.
func (s TaskState) Finished() bool { return s != TaskPending && s != TaskInProgress }

// CanBecome reports whether a step in state s may move to next.
func (s StepState) CanBecome(next StepState) bool { return slices.Contains(StepTransitions[s], next) }

// Satisfied reports whether a step in this state lets the steps that depend on
// it start.
func (s StepState) Satisfied() bool {
	return s == StepComplete || s == StepSkipped || s == StepResolvedManually
}

// Finished reports whether the engine is done with a step in this state.
func (s StepState) Finished() bool {
	return s.Satisfied() || s == StepError || s == StepCancelled
}

// Outstanding reports whether an attempt of a step in this state is out: its
// result is still to come.
func (s StepState) Outstanding() bool { return s == StepEnqueued || s == StepInProgress }
