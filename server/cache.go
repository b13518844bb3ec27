package server

import (
	"context"
	"time"

	"github.com/taskerhq/tasker/store"
)

const (
	goodFor      = 5 * time.Second // an answer of analytics: the counts it is made of are no newer
	mostAnswers  = 100             // that are kept
	statusFor    = 15 * time.Second
	statusAnswer = "status"
)

// question is what was asked.
type question struct {
	what  string
	scope store.Scope
}

// remembered is an answer, and when it was given. Who asks the same meanwhile waits
// for it.
type remembered struct {
	turn  chan struct{} // holds a token while somebody finds it out
	at    time.Time     // zero: nobody has yet
	value any
}

// remember answers by what was found out a moment ago, or finds it out: dashboards
// ask often, and there are many of them.
func (s *server) remember(ctx context.Context, what string, scope store.Scope, find func(context.Context) (any, error)) (any, error) {
	value, _, err := s.recall(ctx, question{what, scope}, goodFor, find)
	return value, err
}

// recall is remember with an age, and says whether the answer was known.
func (s *server) recall(ctx context.Context, q question, age time.Duration, find func(context.Context) (any, error)) (value any, known bool, err error) {
	s.mu.Lock()
	r := s.answers[q]
	if r == nil {
		if len(s.answers) >= mostAnswers {
			clear(s.answers) // who asks so many things, asks anew
		}
		r = &remembered{turn: make(chan struct{}, 1)}
		s.answers[q] = r
	}
	s.mu.Unlock()
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
	if !r.at.IsZero() && time.Since(r.at) < age {
		return r.value, true, nil
	}
	if value, err = find(ctx); err != nil {
		return nil, false, err
	}
	r.value, r.at = value, time.Now()
	return value, false, nil
}

// currentStatus is the status, at most a quarter of a minute old.
func (s *server) currentStatus(ctx context.Context) (any, error) {
	value, known, err := s.recall(ctx, question{what: statusAnswer}, statusFor, func(ctx context.Context) (any, error) { return StatusOf(ctx, s.Store) })
	if err != nil {
		return nil, err
	}
	status := *value.(*Status)
	status.Cached = known
	return &status, nil
}
