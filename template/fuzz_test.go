package template_test

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/dag"
	"github.com/taskerhq/tasker/template"
)

// FuzzParse: no file makes Parse panic. What it refuses has places and
// messages; what it accepts is sound.
func FuzzParse(f *testing.F) {
	for _, folder := range []string{"refused", "valid"} {
		for _, file := range yamlFiles(f, folder) {
			f.Add(read(f, file), "test")
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, environment string) {
		parsed, err := template.Parse("f.yaml", data, template.Options{Environment: environment})
		if err != nil {
			var wrong template.Errors
			if !errors.As(err, &wrong) || len(wrong) == 0 || parsed != nil {
				t.Fatalf("an error of another kind: %v", err)
			}
			for _, p := range wrong {
				if p.File != "f.yaml" || p.Line < 1 || p.Column < 1 || p.Message == "" {
					t.Fatalf("a problem without a place or a message: %+v", p)
				}
			}
			return
		}
		if _, err := dag.New(parsed.Steps); err != nil {
			t.Fatalf("accepted %v", err)
		}
		for _, s := range parsed.Steps {
			if (s.Handler == "") == (s.HandlerClass == "") || s.Name == "" || s.RetryLimit < 1 {
				t.Fatalf("accepted %+v", s)
			}
		}
		written, err := json.Marshal(parsed)
		if err != nil {
			t.Fatal(err)
		}
		var read tasker.Template
		if err := json.Unmarshal(written, &read); err != nil {
			t.Fatal(err)
		}
		if template.Checksum(parsed) != template.Checksum(&read) {
			t.Fatal("the template changes on its way through JSON")
		}
	})
}
