package template_test

import (
	"encoding/json"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/template"
)

const hello = "name: hello\nschema: {type: object, minProperties: 1}\nstep_templates: [{name: greet, handler: tasker.echo, handler_config: {n: 1.5, big: 1e22}}]\n"

func TestChecksumIsOfWhatATemplateSays(t *testing.T) {
	base := parse(t, hello)
	same := parse(t, `
# the same, written otherwise
step_templates:
  - handler_config: {big: 10000000000000000000000, n: 15e-1}
    name: greet
    handler: "tasker.echo"
    default_retryable: true
namespace_name: default
schema: {minProperties: 0x1, type: object}
name: hello
`)
	if template.Checksum(base) != template.Checksum(same) {
		t.Error("layout and defaults make a difference")
	}
	for _, change := range []string{"hello→hullo", "greet→great", "1.5→1.25", "type: object→type: array", "tasker.echo→tasker.sleep"} {
		from, to, _ := strings.Cut(change, "→")
		if other := parse(t, strings.Replace(hello, from, to, 1)); template.Checksum(base) == template.Checksum(other) {
			t.Errorf("%s makes no difference", change)
		}
	}
	if len(template.Checksum(base)) != 64 {
		t.Errorf("%q is no SHA-256 in hex", template.Checksum(base))
	}
}

// A jsonb column gives back other white space, another order of keys, other
// spellings of numbers, and null for what was empty.
func TestChecksumSurvivesStorage(t *testing.T) {
	stored := parse(t, hello)
	want := template.Checksum(stored)
	stored.Steps[0].HandlerConfig = json.RawMessage(` {"n": 1.50, "big": 10000000000000000000000}`)
	stored.Schema = json.RawMessage(`{"type":"object","minProperties":1.0}`)
	if template.Checksum(stored) != want {
		t.Error("another spelling of the same JSON makes a difference")
	}
	stored.Schema, stored.Steps[0].HandlerConfig = nil, nil
	want = template.Checksum(stored)
	stored.Schema, stored.Steps[0].HandlerConfig = json.RawMessage("null"), json.RawMessage("null")
	if template.Checksum(stored) != want {
		t.Error("null isn't nothing")
	}
	if string(stored.Schema) != "null" {
		t.Error("Checksum changed its argument")
	}
}

func TestChecksumRefusesWhatIsNoJSON(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("made a checksum of nonsense")
		}
	}()
	template.Checksum(&tasker.Template{Schema: json.RawMessage("{")})
}

// JSON is YAML: any value goes through a file and comes back.
func TestAnyConfigIsKept(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		config := rapid.MapOf(rapid.StringMatching(`[ -~äß☃]{0,8}`), anyJSON(3)).Draw(t, "config")
		written, err := json.Marshal(config)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(written), "${") {
			t.Skip("in a file this is a variable")
		}
		parsed, err := template.Parse("t.yaml",
			[]byte(`{"name": "t", "step_templates": [{"name": "s", "handler": "h", "handler_config": `+string(written)+`}]}`), template.Options{})
		if err != nil {
			t.Fatalf("%s: %v", written, err)
		}
		direct := *parsed
		direct.Steps = []tasker.StepTemplate{parsed.Steps[0]}
		direct.Steps[0].HandlerConfig = written
		if template.Checksum(parsed) != template.Checksum(&direct) {
			t.Fatalf("%s became %s", written, parsed.Steps[0].HandlerConfig)
		}
		again, err := json.Marshal(parsed)
		if err != nil {
			t.Fatal(err)
		}
		var read tasker.Template
		if err := json.Unmarshal(again, &read); err != nil {
			t.Fatal(err)
		}
		if template.Checksum(&read) != template.Checksum(parsed) {
			t.Fatalf("%s is not read back", again)
		}
	})
}

func anyJSON(depth int) *rapid.Generator[any] {
	scalars := []*rapid.Generator[any]{
		rapid.Just[any](nil),
		rapid.Bool().AsAny(),
		rapid.Int().AsAny(),
		rapid.Float64().AsAny(),
		rapid.StringMatching(`[ -~äß☃\n\t]{0,12}`).AsAny(),
	}
	if depth == 0 {
		return rapid.OneOf(scalars...)
	}
	return rapid.OneOf(append(scalars,
		rapid.SliceOfN(rapid.Deferred(func() *rapid.Generator[any] { return anyJSON(depth - 1) }), 0, 4).AsAny(),
		rapid.MapOfN(rapid.StringMatching(`[ -~äß☃]{0,8}`), rapid.Deferred(func() *rapid.Generator[any] { return anyJSON(depth - 1) }), 0, 4).AsAny(),
	)...)
}
