package safetext

import "github.com/taskerhq/tasker"

// Most characters of the parts of a failure that are kept, as in the gem's FailureRecord.
const (
	classCharacters     = 500
	messageCharacters   = 10_000
	codeCharacters      = 200
	backtraceLines      = 50
	backtraceCharacters = 1000
)

// Failure makes a failure fit to be stored: each text in it is clean. It changes f and
// returns it; nil stays nil. Every failure that is made in Go passes through it.
func Failure(f *tasker.Failure) *tasker.Failure {
	if f == nil {
		return nil
	}
	f.Class = Clean(f.Class, classCharacters)
	f.Message = Clean(f.Message, messageCharacters)
	f.Cause = Clean(f.Cause, classCharacters)
	f.Code = Clean(f.Code, codeCharacters)
	f.Handler = Clean(f.Handler, classCharacters)
	f.Backtrace = f.Backtrace[:min(len(f.Backtrace), backtraceLines)]
	for i, line := range f.Backtrace {
		f.Backtrace[i] = Clean(line, backtraceCharacters)
	}
	return f
}
