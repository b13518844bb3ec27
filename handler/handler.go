// Package handler holds the Go handlers of a worker: functions that run
// attempts of steps inside the worker's process.
//
// A handler gets the attempt and returns its result, any value that
// encoding/json can write, or an error. Every error is retried as the step's
// template says, except one made by Permanent. An attempt may run more than
// once in effect (the process can die after the work and before the result is
// committed), so work outside the database has to be idempotent; StepID is a
// key that stays the same over the attempts of a step.
package handler

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/safetext"
)

// Func runs one attempt. Its context ends at the step's timeout, and when the
// worker has to stop.
type Func func(ctx context.Context, attempt *tasker.Attempt) (any, error)

// Registry maps the names that templates use under "handler" to functions.
type Registry struct {
	mu    sync.RWMutex
	funcs map[string]Func
	http  HTTP

	running struct {
		sync.Mutex
		attempts map[string]int // by handler
	}
}

// NewRegistry returns a registry that holds the built-in handlers
// tasker.echo, tasker.sleep and tasker.fail. AllowHTTP adds tasker.http.
func NewRegistry() *Registry {
	r := &Registry{funcs: map[string]Func{}}
	r.Register("tasker.echo", echo)
	r.Register("tasker.sleep", sleep)
	r.Register("tasker.fail", fail)
	return r
}

// Register adds a handler. It panics when the name is taken or empty: that is a
// mistake in the program, seen at its start.
func (r *Registry) Register(name string, f Func) {
	if name == "" || f == nil {
		panic("handler: Register needs a name and a function")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, taken := r.funcs[name]; taken {
		panic(fmt.Sprintf("handler: %s is registered already", name))
	}
	r.funcs[name] = f
}

// Names lists the registered handlers in alphabetical order.
func (r *Registry) Names() []string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return slices.Sorted(maps.Keys(r.funcs))
}

// Has reports whether a handler is registered.
func (r *Registry) Has(name string) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.funcs[name] != nil
}

// Run runs an attempt with the named handler. It returns the result as JSON
// that Postgres can store, or the failure; it never panics.
func (r *Registry) Run(ctx context.Context, name string, attempt *tasker.Attempt) (result json.RawMessage, failure *tasker.Failure) {
	r.mu.RLock()
	f, ok := r.funcs[name]
	r.mu.RUnlock()
	if !ok {
		return nil, &tasker.Failure{
			Class: "HandlerNotFound", Code: tasker.CodeHandlerNotFound, Permanent: true, Attempt: attempt.Number, Handler: name,
			Message: fmt.Sprintf("this worker has no Go handler %q; it has: %s. Register it in the worker's program, or correct the template",
				name, strings.Join(r.Names(), ", ")),
		}
	}
	defer func() {
		failure = safetext.Failure(failure) // after the recovery below
	}()
	defer func() {
		if p := recover(); p != nil {
			failure = &tasker.Failure{
				Class: "panic", Code: tasker.CodeHandlerPanicked, Message: fmt.Sprint(p),
				Backtrace: strings.Split(string(debug.Stack()), "\n"),
				Attempt:   attempt.Number, Handler: name,
			}
		}
	}()
	r.count(name, 1)
	defer r.count(name, -1)
	value, err := f(ctx, attempt)
	if err != nil {
		return nil, failureOf(ctx, err, name, attempt)
	}
	return encode(value, name, attempt)
}

// Running tells which handlers run, and how many attempts of each.
func (r *Registry) Running() map[string]int {
	r.running.Lock()
	defer r.running.Unlock()
	return maps.Clone(r.running.attempts)
}

// count adds to the attempts that run with the handler.
func (r *Registry) count(name string, more int) {
	r.running.Lock()
	defer r.running.Unlock()
	if r.running.attempts == nil {
		r.running.attempts = map[string]int{}
	}
	if r.running.attempts[name] += more; r.running.attempts[name] == 0 {
		delete(r.running.attempts, name)
	}
}

// Permanent marks an error as one that no retry can mend. code is a word for
// programs, such as "card_declined"; it may be empty.
func Permanent(code string, err error) error { return &permanentError{code, err} }

// RetryAfter marks an error whose cause asked for a delay: it replaces the
// backoff, up to the policy's cap for it.
func RetryAfter(delay time.Duration, err error) error {
	return &retryAfterError{strconv.AppendFloat(nil, delay.Seconds(), 'f', -1, 64), err}
}

// retryAfterHeader is RetryAfter with the text of the header: seconds or a date.
func retryAfterHeader(text string, err error) error {
	doc, _ := json.Marshal(text) // a string always marshals
	return &retryAfterError{doc, err}
}

type permanentError struct {
	code string
	err  error
}

func (e *permanentError) Error() string { return e.err.Error() }
func (e *permanentError) Unwrap() error { return e.err }
func (e *permanentError) marks() error  { return e.err }

type retryAfterError struct {
	after json.RawMessage
	err   error
}

func (e *retryAfterError) Error() string { return e.err.Error() }
func (e *retryAfterError) Unwrap() error { return e.err }
func (e *retryAfterError) marks() error  { return e.err }

func failureOf(ctx context.Context, err error, name string, attempt *tasker.Attempt) *tasker.Failure {
	f := &tasker.Failure{Class: className(err), Message: err.Error(), Attempt: attempt.Number, Handler: name}
	if permanent, ok := errors.AsType[*permanentError](err); ok {
		f.Permanent, f.Code = true, permanent.code
	}
	if after, ok := errors.AsType[*retryAfterError](err); ok {
		f.RetryAfter = after.after
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		f.Code = tasker.CodeAttemptTimeout
		f.Message = fmt.Sprintf("no result after %s (timeout_seconds of the step): %s", attempt.Timeout, err)
	}
	return f
}

// className is the type of the error inside its marks, as Go prints it.
func className(err error) string {
	for {
		marked, ok := err.(interface{ marks() error }) // only the outermost layers: what wraps a mark is a type of its own
		if !ok {
			return strings.TrimPrefix(fmt.Sprintf("%T", err), "*")
		}
		err = marked.marks()
	}
}

// encode turns a handler's value into JSON that jsonb takes: valid UTF-8, no
// NUL, not too large.
func encode(value any, name string, attempt *tasker.Attempt) (json.RawMessage, *tasker.Failure) {
	refuse := func(code, format string, args ...any) (json.RawMessage, *tasker.Failure) {
		return nil, &tasker.Failure{
			Class: "Result", Code: code, Permanent: true, Attempt: attempt.Number, Handler: name,
			Message: "the result of handler " + name + " " + fmt.Sprintf(format, args...),
		}
	}
	result, err := json.Marshal(value)
	switch {
	case err != nil:
		return refuse(tasker.CodeResultNotSerializable, "is not JSON: %s", err)
	case !utf8.Valid(result):
		return refuse(tasker.CodeResultNotSerializable, "is not valid UTF-8")
	case hasNUL(result):
		return refuse(tasker.CodeResultNotSerializable, `holds a NUL character (\u0000), which Postgres cannot store`)
	}
	if problem := tasker.DocumentProblem(result, tasker.MaxResultBytes); problem != "" {
		code := tasker.CodeResultNotSerializable
		if strings.Contains(problem, "bytes") { // its numbers and its depth are all right
			code = tasker.CodeResultTooLarge
		}
		return refuse(code, "%s: store the data and return a reference", problem)
	}
	return result, nil
}

// hasNUL reports whether a JSON text has the escape \u0000 in a string. A
// backslash that is itself escaped does not count.
func hasNUL(doc []byte) bool {
	for rest := doc; ; {
		i := bytes.Index(rest, []byte(`\u0000`))
		if i < 0 {
			return false
		}
		before := 0
		for j := i - 1; j >= 0 && rest[j] == '\\'; j-- {
			before++
		}
		if before%2 == 0 {
			return true
		}
		rest = rest[i+1:]
	}
}
