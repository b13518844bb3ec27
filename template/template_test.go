package template_test

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/template"
)

var update = flag.Bool("update", false, "write testdata/*.golden anew")

// golden compares with a file, which -update writes.
func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s:\n got:\n%s\nwant:\n%s", file, got, want)
	}
}

func yamlFiles(t testing.TB, folder string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", folder, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files in testdata/%s: %v", folder, err)
	}
	return files
}

func read(t testing.TB, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// The messages are what people meet, so they are kept and reviewed as texts.
func TestRefusedTemplates(t *testing.T) {
	for _, file := range yamlFiles(t, "refused") {
		name := filepath.Base(file)
		t.Run(strings.TrimSuffix(name, ".yaml"), func(t *testing.T) {
			parsed, err := template.Parse(name, read(t, file), template.Options{})
			var wrong template.Errors
			if !errors.As(err, &wrong) || parsed != nil {
				t.Fatalf("got %v with %v", parsed, err)
			}
			golden(t, strings.TrimSuffix(file, ".yaml")+".golden", wrong.Error()+"\n")
		})
	}
}

func TestAcceptedTemplates(t *testing.T) {
	for _, file := range yamlFiles(t, "valid") {
		for _, environment := range []string{"", "test", "production", "unheard_of"} {
			parsed, err := template.Parse(file, read(t, file), template.Options{Environment: environment})
			if err != nil {
				t.Fatal(err)
			}
			written, err := json.MarshalIndent(parsed, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			as := environment
			if as != "test" {
				as = "base" // no overlay, an empty one, and one that isn't there
			}
			golden(t, strings.TrimSuffix(file, ".yaml")+"."+as+".golden", string(written)+"\n")
		}
	}
}

func parse(t testing.TB, text string) *tasker.Template {
	t.Helper()
	parsed, err := template.Parse("t.yaml", []byte(text), template.Options{})
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return parsed
}

func TestDefaultsAreFilledIn(t *testing.T) {
	got := parse(t, "name: hello\nstep_templates: [{name: greet, handler: tasker.echo}]\n")
	want := &tasker.Template{
		Namespace: "default", Name: "hello", Version: "0.1.0", MaxParallelSteps: 10,
		Steps: []tasker.StepTemplate{{
			Name: "greet", Handler: "tasker.echo", Retryable: true, RetryLimit: 3, Retry: tasker.DefaultRetryPolicy(),
		}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
}

func TestBothSpellingsOfDependenciesAreOneList(t *testing.T) {
	got := parse(t, `
name: t
step_templates:
  - {name: a, handler: h}
  - {name: b, handler: h}
  - {name: c, handler: h, depends_on_step: b, depends_on_steps: [a, b, a]}
`)
	if want := []string{"b", "a"}; !slices.Equal(got.Steps[2].DependsOn, want) {
		t.Errorf("%v, want %v", got.Steps[2].DependsOn, want)
	}
}

func TestRetryPoliciesAreFilledInFromTheTemplateAndThenTheDefault(t *testing.T) {
	got := parse(t, `
name: t
retry: {backoff: fixed, base_seconds: 0.5}
step_templates:
  - {name: a, handler: h}
  - {name: b, handler: h, retry: {cap_seconds: 7, base_seconds: 2}}
`)
	want := tasker.RetryPolicy{Backoff: tasker.BackoffFixed, Base: 0.5, Cap: 300, Jitter: 0.1, RetryAfterCap: 3600}
	if got.Steps[0].Retry != want {
		t.Errorf("step a: %+v", got.Steps[0].Retry)
	}
	want.Base, want.Cap = 2, 7
	if got.Steps[1].Retry != want {
		t.Errorf("step b: %+v", got.Steps[1].Retry)
	}
}

func TestTheFileItselfMayBePlainOrWindowsOrHaveAMark(t *testing.T) {
	plain := "name: hello\nstep_templates:\n  - name: greet\n    handler: tasker.echo\n"
	want := template.Checksum(parse(t, plain))
	for name, text := range map[string]string{
		"Windows line ends": strings.ReplaceAll(plain, "\n", "\r\n"),
		"byte order mark":   "\uFEFF" + plain,
		"document start":    "---\n" + plain,
		"document end":      plain + "...\n",
		"JSON":              `{"name": "hello", "step_templates": [{"name": "greet", "handler": "tasker.echo"}]}`,
	} {
		if got := template.Checksum(parse(t, text)); got != want {
			t.Errorf("%s: another template", name)
		}
	}
}

func TestLimitsOfAFile(t *testing.T) {
	manySteps := func(n int) string {
		var b strings.Builder
		b.WriteString("name: t\nstep_templates:\n")
		for i := range n {
			fmt.Fprintf(&b, "  - {name: s%d, handler: h}\n", i)
		}
		return b.String()
	}
	if got := len(parse(t, manySteps(tasker.MaxSteps)).Steps); got != tasker.MaxSteps {
		t.Errorf("%d steps", got)
	}
	for name, c := range map[string]struct{ text, want string }{
		"one step too many": {manySteps(tasker.MaxSteps + 1), "t.yaml:3:3: step_templates has 10003 steps, and a template may have 10002"},
		"too large":         {"#" + strings.Repeat("x", 8<<20), "t.yaml:1:1: the file has 8388609 bytes, and a template may have 8388608"},
		"too deep":          {"name: t\nschema: " + strings.Repeat("{a: ", 101) + strings.Repeat("}", 101), "t.yaml:2:406: nested more than 100 levels deep, or an alias that contains itself"},
		"far too deep":      {"name: " + strings.Repeat("[", 20_000), "t.yaml:1:10007: malformed YAML: while increasing flow level: exceeded max depth of 10000"},
	} {
		_, err := template.Parse("t.yaml", []byte(c.text), template.Options{})
		if err == nil || err.Error() != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAReportIsCutWhenEverythingIsWrong(t *testing.T) {
	text := "name: t\nstep_templates:\n" + strings.Repeat("  - 1\n", 2000)
	_, err := template.Parse("t.yaml", []byte(text), template.Options{})
	var wrong template.Errors
	if !errors.As(err, &wrong) || len(wrong) != 1001 || !strings.HasPrefix(wrong[1000].Message, "more is wrong") {
		t.Errorf("%d problems, the last: %v", len(wrong), wrong[len(wrong)-1])
	}
}

// A hostile file costs a second, not an hour.
func TestRefusingIsQuick(t *testing.T) {
	step := "  - {name: %s%d, handler: h, depends_on_steps: [%s]}\n"
	long := strings.Repeat("x", 120)
	var dangling, ring, many strings.Builder
	for _, b := range []*strings.Builder{&dangling, &ring, &many} {
		b.WriteString("name: t\nstep_templates:\n")
	}
	for i := range 10_000 {
		fmt.Fprintf(&dangling, step, long, i, fmt.Sprintf("%sy%d", long, i))
		fmt.Fprintf(&ring, step, "s", i, fmt.Sprintf("s%d", (i+1)%10_000))
	}
	fmt.Fprintf(&many, step, "s", 0, strings.Join(slices.Repeat([]string{"a, b, c, d, e, f"}, 40_000), ", "))
	for name, text := range map[string]string{"dangling": dangling.String(), "ring": ring.String(), "many": many.String()} {
		start := time.Now()
		if _, err := template.Parse("t.yaml", []byte(text), template.Options{}); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if took := time.Since(start); took > 20*time.Second { // measured: about 1 s; the rest is for slow machines
			t.Errorf("%s: took %v", name, took)
		}
	}
}

func ExampleParse() {
	file := `
name: settle_invoice
step_templates:
  - name: charge
    handler_class: Billing::Charge
    depends_on_step: ship
  - name: ship
    handler_class: Billing::Ship
    depends_on_step: charge
    default_retry_limits: 5
`
	_, err := template.Parse("settle_invoice.yaml", []byte(file), template.Options{})
	fmt.Println(err)
	// Output:
	// settle_invoice.yaml:6:22: steps depend on one another in a circle: charge → ship → charge; remove one of these dependencies
	// settle_invoice.yaml:10:5: unknown key "default_retry_limits" in step "ship"; did you mean "default_retry_limit"?
}

func BenchmarkParse(b *testing.B) {
	var text strings.Builder
	text.WriteString("name: t\nstep_templates:\n  - {name: first, handler: tasker.echo}\n")
	for i := range 10_000 {
		fmt.Fprintf(&text, "  - {name: s%d, handler: tasker.echo, depends_on_step: first}\n", i)
	}
	data := []byte(text.String())
	for b.Loop() {
		if _, err := template.Parse("t.yaml", data, template.Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
