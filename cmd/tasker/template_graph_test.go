package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/taskerhq/tasker/testenv"
)

var update = flag.Bool("update", false, "write testdata/graph/*.golden anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", "graph", name+".golden")
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
		t.Errorf("%s\n got:\n%s\nwant:\n%s", file, got, want)
	}
}

const order = `name: fulfil_order
namespace_name: shop
version: 1.0.0
max_parallel_steps: 4
step_templates:
  - {name: load, handler_class: Shop::Load}
  - {name: charge, handler_class: Shop::Charge, depends_on_step: load, default_retry_limit: 5}
  - {name: reserve, handler: tasker.http, depends_on_step: load, handler_config: {url: "http://stock/reserve", codes: [200]}}
  - {name: recommend, handler: tasker.echo, depends_on_step: load, skippable: true}
  - {name: ship, handler_class: Shop::Ship, depends_on_steps: [charge, reserve]}
  - {name: notify, handler_class: Shop::Notify, depends_on_steps: [ship, recommend]}
`

// wide has 32 steps: what is drawn has to stay readable.
func wide() string {
	var b strings.Builder
	b.WriteString("name: wide\nversion: 1.0.0\nstep_templates:\n  - {name: split, handler: tasker.echo}\n")
	var all []string
	for i := range 30 {
		fmt.Fprintf(&b, "  - {name: part_%02d, handler_class: Parts::Work, depends_on_step: %s}\n", i, []string{"split", "part_00", "part_01"}[i%3*min(i/3, 1)])
		all = append(all, fmt.Sprintf("part_%02d", i))
	}
	fmt.Fprintf(&b, "  - {name: gather, handler: tasker.echo, depends_on_steps: [%s]}\n", strings.Join(all, ", "))
	return b.String()
}

func TestGraphsAreDrawn(t *testing.T) {
	t.Parallel()
	for name, yaml := range map[string]string{"order": order, "wide": wide(), "one": one} {
		dir := folder(t, map[string]string{name + ".yaml": yaml})
		for _, format := range []string{"mermaid", "text"} {
			golden(t, name+"."+format, expect(t, exitDone, "", "template", "graph", "--file", dir, "--format", format))
		}
		golden(t, name+".mermaid", expect(t, exitDone, "", "template", "graph", "--file", filepath.Join(dir, name+".yaml")))
		golden(t, name+".json", expect(t, exitDone, "", "template", "graph", "--file", dir, "-o", "json"))
	}
}

func TestTheTemplateToDrawIsFound(t *testing.T) {
	t.Parallel()
	db := []string{"--database-url", testenv.Database(t)}
	dir := folder(t, map[string]string{"one.yaml": one, "order.yaml": order})
	expect(t, exitDone, "registered", append(db, "template", "register", dir)...)
	golden(t, "order.text", expect(t, exitDone, "", append(db, "template", "graph", "shop/fulfil_order", "--format", "text")...))
	golden(t, "order.mermaid", expect(t, exitDone, "", "template", "graph", "shop/fulfil_order@1.0.0", "--file", dir))
	expect(t, exitNotFound, "template shop/fulfil_order@2.0.0: not found", append(db, "template", "graph", "shop/fulfil_order@2.0.0")...)
	expect(t, exitNotFound, "template test/two in "+dir+": not found; there are test/one@1.0.0, shop/fulfil_order@1.0.0", "template", "graph", "test/two", "--file", dir)
	expect(t, exitUsage, "holds several templates, name one of them: test/one@1.0.0, shop/fulfil_order@1.0.0", "template", "graph", "--file", dir)
	expect(t, exitUsage, "name one template, as billing/settle_invoice@1.2.0, or give --file FOLDER", "template", "graph")
	expect(t, exitUsage, `--format must be mermaid or text, not "dot"`, "template", "graph", "--file", dir, "--format", "dot")
	expect(t, exitRefused, "bad.yaml:2:1: malformed YAML", "template", "graph", "--file", folder(t, map[string]string{"bad.yaml": "name: [one\n"}))
	expect(t, exitFailed, "no such file or directory", "template", "graph", "--file", filepath.Join(dir, "nope.yaml"))
}

func TestTemplatesAreCompared(t *testing.T) {
	t.Parallel()
	db := []string{"--database-url", testenv.Database(t)}
	old := folder(t, map[string]string{"order.yaml": order})
	changed := folder(t, map[string]string{"order.yaml": strings.NewReplacer(
		"1.0.0", "1.1.0",
		"max_parallel_steps: 4", "max_parallel_steps: 2\non_failure: fail_fast\nschema: {type: object, required: [order_id]}",
		"  - {name: recommend, handler: tasker.echo, depends_on_step: load, skippable: true}\n", "",
		"default_retry_limit: 5", "retry: {cap_seconds: 60}",
		"codes: [200]", "codes: [200, 201], headers: {X-Team: \"<shop>\"}",
		"[ship, recommend]}", "[ship]}\n  - {name: audit, handler: tasker.echo, depends_on_step: ship}",
	).Replace(order)})
	expect(t, exitDone, "registered", append(db, "template", "register", old)...)
	expect(t, exitDone, "task 1", append(db, "task", "enqueue", "shop/fulfil_order")...)
	expect(t, exitDone, "registered", append(db, "template", "register", changed)...)
	for range 2 {
		expect(t, exitDone, "task", append(db, "task", "enqueue", "shop/fulfil_order", "--context", `{"order_id": 1}`)...)
	}

	registered := expect(t, exitDone, "", append(db, "template", "diff", "shop/fulfil_order@1.0.0", "shop/fulfil_order")...)
	golden(t, "diff.text", registered)
	golden(t, "diff.json", expect(t, exitDone, "", append(db, "-o", "json", "template", "diff", "shop/fulfil_order@1.0.0", "shop/fulfil_order@1.1.0")...))
	file := filepath.Join(changed, "order.yaml")
	golden(t, "diff.text", expect(t, exitDone, "", append(db, "template", "diff", "shop/fulfil_order@1.0.0", file)...))
	without, _, _ := strings.Cut(registered, "\ntasks still")
	if got := expect(t, exitDone, "", "template", "diff", filepath.Join(old, "order.yaml"), file); got != without {
		t.Errorf("two files, without a database:\n%s", got)
	}
	expect(t, exitDone, "no difference", append(db, "template", "diff", "shop/fulfil_order", file)...)
	golden(t, "same.json", expect(t, exitDone, "", "-o", "json", "template", "diff", file, file))
	lines := strings.SplitAfter(order, "\n")
	lines[5], lines[6] = lines[6], lines[5]
	swapped := folder(t, map[string]string{"order.yaml": strings.Join(lines, "")})
	expect(t, exitDone, "the steps stand in another order", "template", "diff", filepath.Join(old, "order.yaml"), filepath.Join(swapped, "order.yaml"))

	expect(t, exitNotFound, "template shop/fulfil_order@9.9.9: not found", append(db, "template", "diff", "shop/fulfil_order@9.9.9", file)...)
	expect(t, exitUsage, "accepts 2 arg(s)", "template", "diff", file)
	expect(t, exitUsage, "no database given", "template", "diff", "shop/fulfil_order", file)
}
