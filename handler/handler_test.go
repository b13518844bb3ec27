package handler_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/handler"
)

func run(t *testing.T, name, config string, change ...func(*tasker.Attempt)) (string, *tasker.Failure) {
	t.Helper()
	attempt := &tasker.Attempt{Step: "s", Template: "n/t@1.0.0", Number: 1, Used: 1, Limit: 3, Config: json.RawMessage(config)}
	for _, f := range change {
		f(attempt)
	}
	result, failure := handler.NewRegistry().Run(t.Context(), name, attempt)
	return string(result), failure
}

func TestEchoReturnsItsConfigAndTheDependencies(t *testing.T) {
	result, failure := run(t, "tasker.echo", `{"a": 1}`, func(a *tasker.Attempt) {
		a.Dependencies = map[string]json.RawMessage{"x": json.RawMessage(`{"y": 2}`)}
	})
	if failure != nil || result != `{"a":1,"dependencies":{"x":{"y":2}}}` {
		t.Errorf("got %s, %+v", result, failure)
	}
	if result, failure := run(t, "tasker.echo", ``); failure != nil || result != `{}` {
		t.Errorf("without a config: got %s, %+v", result, failure)
	}
}

func TestFailFailsAsTold(t *testing.T) {
	if _, f := run(t, "tasker.fail", `{"times": 2}`, used(2)); f == nil || f.Permanent {
		t.Errorf("the second of two failures: %+v", f)
	}
	if result, f := run(t, "tasker.fail", `{"times": 2}`, used(3)); f != nil || result != `{"attempts":3}` {
		t.Errorf("after two failures: %s, %+v", result, f)
	}
	if _, f := run(t, "tasker.fail", `{"permanent": true}`); f == nil || !f.Permanent || f.Code != "told_to_fail" {
		t.Errorf("permanent: %+v", f)
	}
	if _, f := run(t, "tasker.fail", `{"retry_after": 1.5}`); f == nil || string(f.RetryAfter) != "1.5" {
		t.Errorf("retry_after: %+v", f)
	}
}

func used(n int) func(*tasker.Attempt) { return func(a *tasker.Attempt) { a.Used = n } }

func TestAWrongConfigIsPermanentAndNamesThePlace(t *testing.T) {
	for _, name := range []string{"tasker.sleep", "tasker.fail", "tasker.echo"} {
		_, f := run(t, name, `[1]`)
		if f == nil || !f.Permanent || f.Code != "bad_handler_config" || !strings.Contains(f.Message, "handler_config of step s in n/t@1.0.0") {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

func TestSleepEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, f := handler.NewRegistry().Run(ctx, "tasker.sleep", &tasker.Attempt{Config: json.RawMessage(`{"seconds": 3600}`)})
	if f == nil || !strings.Contains(f.Message, context.Canceled.Error()) {
		t.Errorf("got %+v", f)
	}
}

type ownError struct{}

func (*ownError) Error() string { return "own" }

func TestAnErrorBecomesAFailureThatNamesItsCause(t *testing.T) {
	r := handler.NewRegistry()
	var err error
	r.Register("h", func(context.Context, *tasker.Attempt) (any, error) { return nil, err })
	for _, c := range []struct {
		err       error
		class     string
		code      string
		permanent bool
		after     string
	}{
		{errors.New("x"), "errors.errorString", "", false, ""},
		{&ownError{}, "handler_test.ownError", "", false, ""},
		{handler.Permanent("declined", &ownError{}), "handler_test.ownError", "declined", true, ""},
		{fmt.Errorf("wrapped: %w", handler.Permanent("declined", &ownError{})), "fmt.wrapError", "declined", true, ""},
		{handler.RetryAfter(1500*time.Millisecond, &ownError{}), "handler_test.ownError", "", false, "1.5"},
	} {
		err = c.err
		_, f := r.Run(t.Context(), "h", &tasker.Attempt{Number: 2})
		if f.Class != c.class || f.Code != c.code || f.Permanent != c.permanent || string(f.RetryAfter) != c.after || f.Attempt != 2 || f.Handler != "h" {
			t.Errorf("%v: got %+v", c.err, f)
		}
	}
}

func TestAMessageIsCutAndCleaned(t *testing.T) {
	r := handler.NewRegistry()
	r.Register("h", func(context.Context, *tasker.Attempt) (any, error) {
		return nil, errors.New("\x00\xff" + strings.Repeat("é", 20_000))
	})
	_, f := r.Run(t.Context(), "h", &tasker.Attempt{})
	if want := "\uFFFD" + strings.Repeat("é", 9_998) + "…"; f.Message != want {
		t.Errorf("got %d characters, starting %q", len([]rune(f.Message)), f.Message[:20])
	}
}

func TestEveryTextOfAFailureIsCleaned(t *testing.T) {
	r := handler.NewRegistry()
	r.Register("coded", func(context.Context, *tasker.Attempt) (any, error) {
		return nil, handler.Permanent("a\x00\xff", errors.New("no"))
	})
	r.Register("panics", func(context.Context, *tasker.Attempt) (any, error) { panic("a\x00\xff") })
	if _, f := r.Run(t.Context(), "coded", &tasker.Attempt{}); f.Code != "a\uFFFD" {
		t.Errorf("code: got %q", f.Code)
	}
	if _, f := r.Run(t.Context(), "panics", &tasker.Attempt{}); f.Message != "a\uFFFD" || f.Code != tasker.CodeHandlerPanicked || len(f.Backtrace) < 3 {
		t.Errorf("panic: got %+v", f)
	}
}

// An escaped backslash before u0000 is text, not a NUL.
func TestOnlyARealNULIsRefused(t *testing.T) {
	r := handler.NewRegistry()
	var value any
	r.Register("h", func(context.Context, *tasker.Attempt) (any, error) { return value, nil })
	for text, nul := range map[string]bool{"\x00": true, `\u0000`: false, `\` + "\x00": true, `\\u0000`: false, "a\x00": true, "u0000": false} {
		value = text
		if _, f := r.Run(t.Context(), "h", &tasker.Attempt{}); (f != nil) != nul {
			t.Errorf("%q: failure is %+v", text, f)
		}
	}
}

func TestRegisteringTwiceIsAMistakeInTheProgram(t *testing.T) {
	defer func() {
		if p := recover(); p == nil || !strings.Contains(fmt.Sprint(p), "tasker.echo is registered already") {
			t.Errorf("got %v", p)
		}
	}()
	handler.NewRegistry().Register("tasker.echo", func(context.Context, *tasker.Attempt) (any, error) { return nil, nil })
}

func TestTheBuiltinHandlersAreThoseThatTemplatesMayName(t *testing.T) {
	r := handler.NewRegistry()
	r.AllowHTTP()
	if names := r.Names(); !slices.Equal(slices.Sorted(slices.Values(names)), tasker.BuiltinHandlers) {
		t.Errorf("a worker brings %v, templates may name %v", names, tasker.BuiltinHandlers)
	}
}
