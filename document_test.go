package tasker_test

import (
	"encoding/json"
	"testing"

	"github.com/taskerhq/tasker"
)

func FuzzDocumentProblem(f *testing.F) {
	for _, doc := range []string{`{}`, `[1e5, -0.0e-3, "\"", {"a": null}]`, `-1.5E+3`} {
		f.Add([]byte(doc))
	}
	f.Fuzz(func(_ *testing.T, doc []byte) {
		if json.Valid(doc) {
			tasker.DocumentProblem(doc, 100)
		}
	})
}
