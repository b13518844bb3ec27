package orchestrator

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/crash"
	"github.com/taskerhq/tasker/safetext"
	"github.com/taskerhq/tasker/store"
)

// What a loop sets in motion once its write is committed.

// act starts what was claimed.
func (l *loop) act(act action) error {
	var dispatches []tasker.Dispatch
	var local []int
	var out []int64
	for _, i := range act.starts {
		s, spec := &l.steps[i], &l.template.Steps[i]
		if !s.out {
			local = append(local, i)
			continue
		}
		dispatches = append(dispatches, tasker.Dispatch{
			TaskID: l.id, StepID: s.id, Attempt: s.attempt, Handler: spec.HandlerClass, Queue: queueOf(spec), CorrelationID: l.task.CorrelationID, Ticket: s.ticket,
			Alone: s.losses > 0 || hasty(spec.Timeout.Duration()) || hasty(spec.Heartbeat.Duration()),
		})
		out = append(out, s.id)
	}
	if len(dispatches) > 0 {
		if !act.done {
			l.o.await(out)
		}
		l.o.Dispatcher.Push(dispatches)
	}
	if len(local) == 0 {
		return nil
	}
	if err := l.fetchResults(local); err != nil {
		return err
	}
	for _, i := range local {
		l.start(i)
	}
	l.dropResults(local)
	return nil
}

// fetchResults reads the results that the given steps need and the loop doesn't
// have: those of Ruby steps, and those from before this worker owned the task.
func (l *loop) fetchResults(positions []int) error {
	var missing []int64
	for _, i := range positions {
		for _, d := range l.template.graph.Dependencies(i) {
			if _, have := l.results[d]; !have {
				missing = append(missing, l.steps[d].id)
			}
		}
	}
	if len(missing) == 0 {
		return nil
	}
	results, err := store.Patiently(l.o.ctx, func() (map[int64]json.RawMessage, error) {
		return l.o.Store.Results(l.o.ctx, missing)
	})
	if err != nil {
		return err
	}
	for id, result := range results {
		l.results[l.position[id]] = result
	}
	return nil
}

// dropResults lets go of results that no step will ask for again, so that a
// long chain does not keep them all. A retry reads what it needs anew.
func (l *loop) dropResults(started []int) {
	for _, i := range started {
		for _, d := range l.template.graph.Dependencies(i) {
			if l.uses[d] == 0 {
				delete(l.results, d)
			}
		}
	}
}

// start runs the claimed attempt of a Go step.
func (l *loop) start(i int) {
	s, spec := &l.steps[i], &l.template.Steps[i]
	attempt := &tasker.Attempt{
		TaskID: l.id, StepID: s.id, Template: l.template.FullName(), Step: spec.Name,
		Number: s.attempt, Used: s.attempt - s.losses - s.forgiven, Limit: spec.AttemptLimit(),
		CorrelationID: l.task.CorrelationID, IdempotencyKey: tasker.IdempotencyKey(l.task.KeySeed, s.id), Timeout: spec.Timeout.Duration(),
		Context: l.task.Context, Config: spec.HandlerConfig, Progress: s.progress,
	}
	if deps := l.template.graph.Dependencies(i); len(deps) > 0 {
		attempt.Dependencies = make(map[string]json.RawMessage, len(deps))
		for _, d := range deps {
			attempt.Dependencies[l.template.Steps[d].Name] = l.results[d]
		}
	}
	var (
		ctx    = l.o.handlers
		cancel context.CancelFunc
		until  time.Time
	)
	if l.o.Tracer != nil {
		ctx = l.o.Tracer.Context(ctx, l.task, s.id, s.attempt)
	}
	if attempt.Timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, attempt.Timeout)
		until = time.Now().Add(attempt.Timeout + l.o.tuning().Indulgence)
	} else {
		ctx, cancel = context.WithCancel(ctx)
	}
	heart := &heart{o: l.o, step: s.id, attempt: s.attempt, beaten: time.Now()}
	attempt.Beat = func(progress json.RawMessage) error { return heart.beat(ctx, progress) }
	l.running[i] = running{s.attempt, cancel, until, spec.Heartbeat.Duration(), heart}
	go func() {
		crash.At(crash.AttemptBegins)
		result, failure := l.o.Handlers.Run(ctx, spec.Handler, attempt)
		crash.At(crash.AttemptEnds)
		if failure != nil {
			// Whoever runs the next attempt goes on from here. What the database
			// can't hold, the handler has been told of.
			_ = heart.keep(l.o.ctx)
		}
		if failure == nil && spec.ResultSchema != nil {
			failure = l.o.misfit(spec, result)
		}
		lost := failure != nil && !failure.Permanent && l.o.handlers.Err() != nil
		l.mail.put(letter{ended: &ended{position: i, attempt: attempt.Number, result: result, failure: failure, lost: lost, progress: heart.last()}})
	}()
}

// misfit is the failure of a result that does not fit its step's result_schema,
// or nil. A result that Postgres can't read at all is left to its write, which
// says so.
func (o *Orchestrator) misfit(spec *tasker.StepTemplate, result json.RawMessage) *tasker.Failure {
	problem, err := store.Patiently(o.ctx, func() (string, error) { return o.Store.SchemaProblem(o.ctx, spec.ResultSchema, result) })
	var refused *store.RefusedError
	switch {
	case errors.As(err, &refused):
		return nil
	case err != nil:
		return safetext.Failure(&tasker.Failure{Class: "Result", Handler: spec.Handler, Message: "the result could not be checked: " + err.Error()})
	case problem == "":
		return nil
	}
	return safetext.Failure(&tasker.Failure{
		Class: "Result", Code: tasker.CodeResultSchema, Permanent: true, Handler: spec.Handler,
		Message: "the result does not fit the result_schema of its step: " + problem,
	})
}

// hasty says that a clock of an attempt leaves no time to wait behind another.
func hasty(clock time.Duration) bool { return clock > 0 && clock < tasker.LeastShared }

func queueOf(s *tasker.StepTemplate) string {
	if s.Queue == "" {
		return "default"
	}
	return s.Queue
}
