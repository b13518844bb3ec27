// Package finalizer decides what a finished attempt means for its step, and
// what the standing of the steps means for their task.
//
// Who decides. Finalizer is the only retry authority. Sidekiq jobs carry
// retry: false, River's retries repair orchestration and never repeat a step,
// and SQL stores the delay it is given: whether a step runs again, and when, is
// said here and nowhere else. Backoff is likewise the only calculator, applied
// once per failed attempt.
//
// What is trusted. The counters (attempt number, losses) come from the step's
// row and are right. What a handler says about its own failure is honoured:
// that it is permanent, and how long the called system asked to be left alone,
// within the policy's cap. What can't be read is ignored, never fatal, and the
// decision's Note says so.
//
// What happens when it breaks. Decisions are values computed from values; the
// time and the random draw are arguments, and nothing is written here. The
// caller persists the decision, fenced by step and attempt. When that write is
// refused because somebody else settled the attempt, the decision is void; when
// the worker dies before it, the next one decides again from the same row.
// Every rule ends a step after a bounded number of attempts and every standing
// of a task has an outcome, so nothing that is decided here can loop or hang
// for ever.
package finalizer
