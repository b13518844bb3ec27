package handler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/taskerhq/tasker"
)

// config reads the step's handler_config. A wrong one is permanent: no retry
// mends a template.
func config[T any](attempt *tasker.Attempt) (T, error) {
	var c T
	if len(attempt.Config) == 0 {
		return c, nil
	}
	if err := json.Unmarshal(attempt.Config, &c); err != nil {
		return c, Permanent("bad_handler_config", fmt.Errorf("handler_config of step %s in %s: %w", attempt.Step, attempt.Template, err))
	}
	return c, nil
}

// echo returns the step's handler_config with the dependencies' results under
// "dependencies".
func echo(_ context.Context, attempt *tasker.Attempt) (any, error) {
	out, err := config[map[string]json.RawMessage](attempt)
	if err != nil {
		return nil, err
	}
	if out == nil {
		out = map[string]json.RawMessage{}
	}
	if len(attempt.Dependencies) > 0 {
		dependencies, err := json.Marshal(attempt.Dependencies)
		if err != nil {
			return nil, fmt.Errorf("encode dependencies: %w", err)
		}
		out["dependencies"] = dependencies
	}
	return out, nil
}

// sleep waits for handler_config.seconds.
func sleep(ctx context.Context, attempt *tasker.Attempt) (any, error) {
	c, err := config[struct {
		Seconds tasker.Seconds `json:"seconds"`
	}](attempt)
	if err != nil {
		return nil, err
	}
	select {
	case <-time.After(c.Seconds.Duration()):
		return map[string]any{"slept_seconds": c.Seconds}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// fail fails the first handler_config.times attempts (0 or left out: every one)
// and then succeeds. permanent and retry_after (seconds) say how.
func fail(_ context.Context, attempt *tasker.Attempt) (any, error) {
	c, err := config[struct {
		Times      int             `json:"times"`
		Permanent  bool            `json:"permanent"`
		RetryAfter *tasker.Seconds `json:"retry_after"`
	}](attempt)
	if err != nil {
		return nil, err
	}
	if c.Times > 0 && attempt.Used > c.Times {
		return map[string]any{"attempts": attempt.Used}, nil
	}
	err = errors.New("failed as told")
	switch {
	case c.Permanent:
		err = Permanent("told_to_fail", err)
	case c.RetryAfter != nil:
		err = RetryAfter(c.RetryAfter.Duration(), err)
	}
	return nil, err
}
