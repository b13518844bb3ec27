package safetext

import (
	"bytes"
	"encoding/json"

	"github.com/taskerhq/tasker"
)

// Most characters of the parts of a failure that are kept, as in the gem's FailureRecord.
const (
	classCharacters     = 500
	messageCharacters   = 10_000
	codeCharacters      = 200
	backtraceLines      = 50
	backtraceCharacters = 1000
)

// Failure makes a failure fit to be stored: each text in it is clean, and secrets are
// masked. It changes f and returns it; nil stays nil. Every failure that is made in Go passes through it.
func Failure(f *tasker.Failure) *tasker.Failure {
	if f == nil {
		return nil
	}
	f.Class = MaskClean(f.Class, classCharacters)
	f.Message = MaskClean(f.Message, messageCharacters)
	f.Cause = MaskClean(f.Cause, classCharacters)
	f.Code = MaskClean(f.Code, codeCharacters)
	f.Handler = Clean(f.Handler, classCharacters)
	f.Backtrace = f.Backtrace[:min(len(f.Backtrace), backtraceLines)]
	for i, line := range f.Backtrace {
		f.Backtrace[i] = MaskClean(line, backtraceCharacters)
	}
	if len(f.Context) > 0 {
		f.Context = maskJSON(f.Context)
	}
	return f
}

// MaskClean cleans a text and masks its secrets. It looks for them in twice the text that
// is kept, so that a secret at the cut is known as one.
func MaskClean(text string, limit int) string { return Clean(Mask(Clean(text, 2*limit)), limit) }

// maskJSON masks a JSON document; what is none becomes a string.
func maskJSON(doc json.RawMessage) json.RawMessage {
	decoder := json.NewDecoder(bytes.NewReader(doc))
	decoder.UseNumber()
	var tree any
	if err := decoder.Decode(&tree); err != nil {
		tree = MaskClean(string(doc), messageCharacters)
	}
	masked, err := json.Marshal(MaskTree(tree))
	if err != nil {
		return nil // does not happen: what came out of JSON goes into JSON
	}
	return masked
}
