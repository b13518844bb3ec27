// Package crash names the places between two durable actions: something is
// committed, or has been pushed, and what follows from it has not happened yet.
// A process that dies there leaves the most behind.
//
// In a program that is built with the tag "crashpoints", At kills the process at
// the place that TASKER_CRASH_AT names, as kill -9 would. A test does so at
// each of them. In all other programs At does nothing.
package crash

// Point is such a place.
type Point string

// The places, in the order in which a task comes by.
const (
	TemplateRegistered Point = "template_registered" // others of the folder are not yet
	WorkerRegistered   Point = "worker_registered"   // it owns nothing, and listens to nothing
	JobFetched         Point = "job_fetched"         // River's job runs, the task is not claimed
	LoneTaskHeard      Point = "lone_task_heard"     // a notification told of a task, whose job nobody has fetched
	TaskClaimed        Point = "task_claimed"        // with its first steps, perhaps, of which none has begun
	BatchReady         Point = "batch_ready"         // results and claims are in memory alone
	BatchWritten       Point = "batch_written"       // they are committed, and no loop knows
	AttemptBegins      Point = "attempt_begins"      // of a Go step
	AttemptEnds        Point = "attempt_ends"        // its effects are there, its result is not
	PushBegins         Point = "push_begins"         // Ruby steps are enqueued, and not in Redis
	PushEnds           Point = "push_ends"           // they are, and nobody here knows
	TaskLetGo          Point = "task_let_go"         // ended, or given up: River's job still runs
	JobServed          Point = "job_served"          // River is about to tick it off
	UnstartedTaken     Point = "unstarted_taken"     // attempts that Redis has lost are noted as looked at, and not pushed
	WorkerReaped       Point = "worker_reaped"       // another worker's tasks are free, its other duties are not done
	WorkerDrained      Point = "worker_drained"      // nothing is left to do but to say goodbye
)

// Points are all of them.
var Points = []Point{
	TemplateRegistered, WorkerRegistered, JobFetched, LoneTaskHeard, TaskClaimed, BatchReady, BatchWritten, AttemptBegins, AttemptEnds,
	PushBegins, PushEnds, TaskLetGo, JobServed, UnstartedTaken, WorkerReaped, WorkerDrained,
}
