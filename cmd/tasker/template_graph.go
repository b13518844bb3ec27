package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/dag"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/template"
)

func (a *app) graphCommand() *cobra.Command {
	var file, format string
	c := &cobra.Command{
		Use: "graph [NAMESPACE/NAME[@VERSION]] [--file FOLDER]", Short: "Draw the steps of a template, level by level",
		Long: `Draws a registered template or, with --file, one from a folder or a file; there
the name may be left out when it is the only one. Mermaid goes into Markdown as
it is. In text, a step stands one level below the last of those that it is after.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 || len(args) == 0 && file == "" {
				return &usageError{errors.New("name one template, as billing/settle_invoice@1.2.0, or give --file FOLDER")}
			}
			if format != "" && format != "mermaid" && format != "text" {
				return &usageError{fmt.Errorf("--format must be mermaid or text, not %q", format)}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			name := strings.Join(args, "")
			var t *tasker.Template
			var err error
			if file != "" {
				t, err = a.templateFromFile(file, name)
			} else {
				t, err = a.registeredTemplate(c.Context(), name)
			}
			if err != nil {
				return err
			}
			g, err := dag.New(t.Steps)
			if err != nil {
				return fmt.Errorf("%s: %w", t.FullName(), err)
			}
			switch {
			case a.output == "json":
				return a.printJSON(describeGraph(t, g))
			case format == "mermaid" || format == "" && !isTerminal(a.stdout):
				drawMermaid(a.stdout, t, g)
			default:
				drawText(a.stdout, t, g)
			}
			return nil
		},
	}
	c.Flags().StringVar(&file, "file", "", "folder or file to read the template from, without a database")
	a.settingFlags(c.Flags(), readingSettings...)
	c.Flags().StringVar(&format, "format", "", "mermaid or text (default: text on a terminal, mermaid in a pipe)")
	return c
}

func (a *app) registeredTemplate(ctx context.Context, full string) (*tasker.Template, error) {
	namespace, name, version, err := parseName(full)
	if err != nil {
		return nil, err
	}
	var t *tasker.Template
	err = a.withStore(ctx, func(s *store.Store) error {
		t, err = s.FindTemplate(ctx, namespace, name, version)
		return err
	})
	return t, err
}

// templateFromFile reads a template from a file or out of a folder, where full
// says which, if there are several.
func (a *app) templateFromFile(path, full string) (*tasker.Template, error) {
	opts, err := a.templateOptions()
	if err != nil {
		return nil, err
	}
	loaded, err := template.Load(path, opts)
	if err != nil {
		return nil, err
	}
	var found []*tasker.Template
	for _, l := range loaded {
		found = append(found, l.Template)
	}
	var names []string
	for _, t := range found {
		names = append(names, t.FullName())
	}
	if full != "" {
		namespace, name, version, err := parseName(full)
		if err != nil {
			return nil, err
		}
		found = slices.DeleteFunc(found, func(t *tasker.Template) bool {
			return t.Namespace != namespace || t.Name != name || version != "" && t.Version != version
		})
	}
	switch {
	case len(found) == 0:
		return nil, fmt.Errorf("template %s in %s: %w; there are %s", full, path, store.ErrNotFound, strings.Join(names, ", "))
	case len(found) > 1:
		return nil, &usageError{fmt.Errorf("%s holds several templates, name one of them: %s", path, strings.Join(names, ", "))}
	}
	return found[0], nil
}

type graphStep struct {
	Step    string   `json:"step"`
	Handler string   `json:"handler"`
	Level   int      `json:"level"` // from 1
	After   []string `json:"after"`
}

func describeGraph(t *tasker.Template, g *dag.Graph) any {
	steps := make([]graphStep, 0, len(t.Steps))
	for _, i := range g.TopologicalOrder() {
		steps = append(steps, graphStep{t.Steps[i].Name, handlerOf(&t.Steps[i]), g.Levels()[i] + 1, namesAt(g, g.Dependencies(i))})
	}
	return struct {
		Template string      `json:"template"`
		Steps    []graphStep `json:"steps"`
	}{t.FullName(), steps}
}

// drawMermaid writes a flowchart: Ruby steps as boxes, Go steps rounded,
// skippable ones dashed.
func drawMermaid(w io.Writer, t *tasker.Template, g *dag.Graph) {
	fprintf(w, "---\ntitle: %s\n---\nflowchart TD\n", t.FullName())
	quote := strings.NewReplacer(`"`, "#quot;", "<", "&lt;", ">", "&gt;")
	var dashed []string
	for _, i := range g.TopologicalOrder() {
		s := &t.Steps[i]
		open, closed := "[", "]"
		if s.Handler != "" {
			open, closed = "([", "])"
		}
		fprintf(w, "    s%d%s\"%s<br/>%s\"%s\n", i, open, quote.Replace(s.Name), quote.Replace(handlerOf(s)), closed)
		if s.Skippable {
			dashed = append(dashed, fmt.Sprintf("s%d", i))
		}
	}
	for _, i := range g.TopologicalOrder() {
		for _, before := range g.Dependencies(i) {
			fprintf(w, "    s%d --> s%d\n", before, i)
		}
	}
	if len(dashed) > 0 {
		fprintf(w, "    classDef skippable stroke-dasharray: 5 5\n    class %s skippable\n", strings.Join(dashed, ","))
	}
}

// drawText lists the steps by level. Drawn edges cross beyond recognition from
// some ten steps on; names stay readable.
func drawText(w io.Writer, t *tasker.Template, g *dag.Graph) {
	levels := 0
	widths := [2]int{}
	members := map[int][]int{}
	for _, i := range g.TopologicalOrder() {
		level := g.Levels()[i] + 1
		levels = max(levels, level)
		members[level] = append(members[level], i)
		widths[0] = max(widths[0], len(t.Steps[i].Name))
		widths[1] = max(widths[1], len(handlerOf(&t.Steps[i])))
	}
	fprintf(w, "%s: %s in %s, up to %d at once\n\n", t.FullName(), plural(len(t.Steps), "step"), plural(levels, "level"), t.MaxParallelSteps)
	margin := len(fmt.Sprint(levels))
	for level := 1; level <= levels; level++ {
		for n, i := range members[level] {
			label, fork := "", "├─"
			if n == 0 {
				label, fork = fmt.Sprint(level), "┬─"
			}
			switch {
			case len(members[level]) == 1:
				fork = "──"
			case n == len(members[level])-1:
				fork = "└─"
			}
			line := fmt.Sprintf("%*s %s %-*s  %-*s", margin, label, fork, widths[0], t.Steps[i].Name, widths[1], handlerOf(&t.Steps[i]))
			if after := g.Dependencies(i); len(after) > 0 {
				line += "  after: " + listNames(namesAt(g, after))
			}
			if t.Steps[i].Skippable {
				line += "  (skippable)"
			}
			fprintln(w, strings.TrimRight(line, " "))
		}
	}
}

func handlerOf(s *tasker.StepTemplate) string { return s.HandlerClass + s.Handler }

func namesAt(g *dag.Graph, positions []int) []string {
	names := make([]string, len(positions))
	for i, p := range positions {
		names[i] = g.Name(p)
	}
	return names
}

// listNames joins names; of many it tells the first and how many more.
func listNames(names []string) string {
	const most = 8
	if more := len(names) - most; more > 1 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), more)
	}
	return strings.Join(names, ", ")
}

func plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
