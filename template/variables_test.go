package template_test

import (
	"encoding/json"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/taskerhq/tasker/template"
)

func TestVariablesAreReplacedInTextValues(t *testing.T) {
	variables := map[string]string{"HOST": "pay.example", "ODD": "a: [b, *c] ${HOST}\n\"", "EMPTY": "", "N": "5"}
	parsed, err := template.Parse("t.yaml", []byte(`
name: t
description: "${HOST}${EMPTY} $${HOST} $HOST $$ ${HOST}"
step_templates:
  - name: s
    handler: h
    handler_config: {url: "https://${HOST}/x", "${HOST}": "${ODD}", list: ["${N}"], same: &a {x: "$${N}"}, again: *a}
environments:
  test: {description: "for ${N}"}
`), template.Options{Variables: variables})
	if err != nil {
		t.Fatal(err)
	}
	if want := "pay.example ${HOST} $HOST $$ pay.example"; parsed.Description != want {
		t.Errorf("%q, want %q", parsed.Description, want)
	}
	var config map[string]any
	if err := json.Unmarshal(parsed.Steps[0].HandlerConfig, &config); err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"${HOST}":"a: [b, *c] ${HOST}\n\"","again":{"x":"${N}"},"list":["5"],"same":{"x":"${N}"},"url":"https://pay.example/x"}`; string(got) != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestAVariableIsNoNumber(t *testing.T) {
	_, err := template.Parse("t.yaml", []byte("name: t\nmax_parallel_steps: ${N}\nstep_templates: [{name: s, handler: h}]\n"),
		template.Options{Variables: map[string]string{"N": "5"}})
	if want := `t.yaml:2:21: max_parallel_steps must be a number, not "5"`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestVariablesThatAreNotAllowedAreRefused(t *testing.T) {
	text := "name: t\nmax_parallel_steps: ${N}\nstep_templates:\n  - {name: s, handler: h, description: \"${HSOT} ${BAD}\"}\nenvironments: {test: {description: \"${PATH}\"}}\n"
	_, err := template.Parse("t.yaml", []byte(text), template.Options{Variables: map[string]string{"HOST": "h", "N": "5", "BAD": "\xff"}})
	want := strings.Join([]string{
		`t.yaml:4:40: ${BAD} holds a NUL or is not UTF-8, which Postgres can't store`,
		`t.yaml:4:40: ${HSOT} is not among the variables that templates may use, which are BAD, HOST, N; did you mean "HOST"?; write $${ to have ${ as text`,
		`t.yaml:5:36: ${PATH} is not among the variables that templates may use, which are BAD, HOST, N; write $${ to have ${ as text`,
	}, "\n")
	if err == nil || err.Error() != want {
		t.Errorf("got:\n%v\nwant:\n%s", err, want)
	}
}

// Whatever a variable holds arrives as that text; whatever is escaped arrives
// as it was.
func TestAVariableIsTextWhateverItHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		held := rapid.StringMatching(`[ -~äß☃\n]{0,20}`).Draw(t, "held")
		plain := rapid.StringMatching(`[ -~äß☃]{0,20}`).Draw(t, "plain")
		written, err := json.Marshal(strings.ReplaceAll(strings.TrimRight(plain, "$"), "${", "$${") + "|${V}|")
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := template.Parse("t.yaml", []byte(`{"name": "t", "description": `+string(written)+`, "step_templates": [{"name": "s", "handler": "h"}]}`),
			template.Options{Variables: map[string]string{"V": held}})
		if err != nil {
			t.Fatal(err)
		}
		if want := strings.TrimRight(plain, "$") + "|" + held + "|"; parsed.Description != want {
			t.Fatalf("%q, want %q", parsed.Description, want)
		}
	})
}

// A template from before a key was known keeps its checksum, so that it is
// still the one that tasks have used.
func TestNewKeysLeaveOldChecksumsAlone(t *testing.T) {
	const before = "2174fc4ad885f1ae"
	got := template.Checksum(parse(t, hello))
	if explicit := template.Checksum(parse(t, strings.Replace(hello, "name: hello", "name: hello\non_failure: continue", 1))); explicit != got {
		t.Error("the default, written out, makes a difference")
	}
	if !strings.HasPrefix(got, before) {
		t.Errorf("the checksum is %s", got)
	}
	for _, change := range []string{"on_failure: fail_fast", "schema: {}"} {
		if other := template.Checksum(parse(t, "name: t\nstep_templates: [{name: s, handler: h}]\n"+change)); other == template.Checksum(parse(t, "name: t\nstep_templates: [{name: s, handler: h}]\n")) {
			t.Errorf("%s makes no difference", change)
		}
	}
}
