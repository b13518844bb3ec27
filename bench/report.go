package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/taskerhq/tasker/bench/stage"
)

// results are the figures, and where they were taken.
type results struct {
	When      time.Time `json:"when"`
	Machine   string    `json:"machine"`
	Postgres  string    `json:"postgres"`
	Workloads []named   `json:"workloads"`
	Engines   []named   `json:"engines"`
	Figures   []figure  `json:"figures"`
	Notes     []note    `json:"notes,omitempty"`
}

type named struct {
	Name  string `json:"name"`
	About string `json:"about"`
	Unit  string `json:"unit,omitempty"`
	Own   bool   `json:"own,omitempty"` // about tasker alone
}

// note is a figure that fits no table.
type note struct {
	Workload string  `json:"workload"`
	What     string  `json:"what"`
	Value    float64 `json:"value"`
}

// describe says what is compared, and on what.
func (b *bench) describe(ctx context.Context) (*results, error) {
	r := &results{When: time.Now().UTC().Truncate(time.Second), Machine: fmt.Sprintf("%d processors, %s, %s", runtime.NumCPU(), runtime.GOARCH, runtime.Version())}
	for _, w := range b.workloads {
		r.Workloads = append(r.Workloads, named{w.name, w.title, w.unit, w.own})
	}
	for _, e := range b.engines {
		r.Engines = append(r.Engines, named{Name: e.name, About: e.about})
	}
	err := b.stage.Pool.QueryRow(ctx, `SELECT current_setting('server_version')`).Scan(&r.Postgres)
	r.Postgres += ", fsync and synchronous_commit on, " + strings.Join(settings, ", ")
	return r, err
}

func readResults(file string) (*results, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	r := &results{}
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return r, nil
}

func (r *results) write(file string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}

// varied says how a value varied over the rounds.
func varied(s stage.Spread) string {
	if s.Least == s.Most {
		return number(s.Median)
	}
	return fmt.Sprintf("%s (%s–%s)", number(s.Median), number(s.Least), number(s.Most))
}

// row is one engine's runs of one workload.
type row struct {
	engine  string
	figures []figure
	value   stage.Spread
	ratio   *stage.Spread // how many times better the first engine is
	dirty   int
	// collapsed are the values of rounds in which something went wrong.
	collapsed []float64
}

// rows of a workload. A ratio compares runs of the same round, which are
// neighbours in time: hours, and machines, differ.
func (r *results) rows(w named) []row {
	var rows []row
	for i, e := range r.Engines {
		line := row{engine: e.Name}
		var values, ratios []float64
		for _, f := range r.Figures {
			if f.Workload != w.Name || f.Engine != e.Name {
				continue
			}
			line.figures, values = append(line.figures, f), append(values, f.Value)
			if f.Dirty {
				line.dirty++
			}
			for _, first := range r.Figures {
				switch {
				case i == 0 || first.Workload != w.Name || first.Engine != r.Engines[0].Name || first.Round != f.Round:
				case w.Unit == "ms":
					ratios = append(ratios, f.Value/first.Value)
				default:
					ratios = append(ratios, first.Value/f.Value)
				}
			}
		}
		if len(values) == 0 {
			continue
		}
		if w.Unit != "ms" {
			for i, collapsed := range stage.Collapsed(values) {
				if collapsed {
					line.collapsed = append(line.collapsed, values[i])
				}
			}
		}
		line.value = stage.SpreadOf(values)
		if len(ratios) > 0 {
			line.ratio = new(stage.SpreadOf(ratios))
		}
		rows = append(rows, line)
	}
	return rows
}

func (l row) median(value func(figure) float64) float64 {
	var all []float64
	for _, f := range l.figures {
		all = append(all, value(f))
	}
	return stage.SpreadOf(all).Median
}

// markdown is the report, with the charts of the folder, if it is not empty.
func (r *results) markdown(charts string) string {
	var b strings.Builder
	rounds := 0
	for _, f := range r.Figures {
		rounds = max(rounds, f.Round)
	}
	fmt.Fprintf(&b, "%s; %s; Postgres %s. Rounds, in each of which the engines take turns: %d. Cells: median (least–most).\n\n", r.When.Format(time.DateOnly), r.Machine, r.Postgres, rounds)
	for _, e := range r.Engines {
		fmt.Fprintf(&b, "- `%s`: %s.\n", e.Name, e.About)
	}
	for _, w := range r.Workloads {
		rows := r.rows(w)
		if len(rows) == 0 || w.Own {
			continue
		}
		fmt.Fprintf(&b, "\n### %s: %s\n\n", w.Name, w.About)
		if charts != "" {
			fmt.Fprintf(&b, "![%s by engine](%s/%s.svg)\n\n", w.Unit, charts, w.Name)
		}
		fmt.Fprintf(&b, "| engine | %s |%s %s is better by | CPU per step, µs: engine, Postgres | WAL B | statements | commits |\n|---|---|%s---|---|---|---|---|\n",
			w.Unit, when(w.Unit == "ms", " p99 |"), r.Engines[0].Name, when(w.Unit == "ms", "---|"))
		for _, l := range rows {
			ratio := ""
			if l.ratio != nil {
				ratio = varied(*l.ratio)
			}
			p99 := ""
			if w.Unit == "ms" {
				p99 = " " + number(l.median(func(f figure) float64 { return f.P99 })) + " |"
			}
			fmt.Fprintf(&b, "| %s%s | %s |%s %s | %s |\n", l.engine, disturbed(l.dirty), varied(l.value), p99, ratio, l.costs())
		}
	}
	r.ownMarkdown(&b)
	for _, w := range r.Workloads {
		for _, l := range r.rows(w) {
			for _, value := range l.collapsed {
				fmt.Fprintf(&b, "\n**%s, %s: a round collapsed to %s %s, below half of the best.**\n", w.Name, l.engine, number(value), w.Unit)
			}
		}
	}
	return b.String()
}

// ownMarkdown is the part about tasker alone.
func (r *results) ownMarkdown(b *strings.Builder) {
	begun := false
	for _, w := range r.Workloads {
		for _, l := range r.rows(w) {
			if !w.Own {
				continue
			}
			if !begun {
				begun = true
				b.WriteString("\n### tasker alone\n\n| workload | figure | CPU per step, µs: engine, Postgres | WAL B | statements | commits |\n|---|---|---|---|---|---|\n")
			}
			fmt.Fprintf(b, "| %s: %s%s | %s %s | %s |\n", w.Name, w.About, disturbed(l.dirty), varied(l.value), w.Unit, l.costs())
		}
	}
	if len(r.Notes) > 0 {
		b.WriteString("\n| measured | figure |\n|---|---|\n")
	}
	for _, n := range r.Notes {
		fmt.Fprintf(b, "| %s: %s | %s |\n", n.Workload, n.What, number(n.Value))
	}
}

// costs are the cells of what a step costs.
func (l row) costs() string {
	var cells []any
	for _, value := range []func(figure) float64{
		func(f figure) float64 { return micros(f.EngineCPU) }, func(f figure) float64 { return micros(f.Postgres) },
		func(f figure) float64 { return f.WAL }, func(f figure) float64 { return f.Statements }, func(f figure) float64 { return f.Commits },
	} {
		cells = append(cells, number(l.median(value)))
	}
	return fmt.Sprintf("%s, %s | %s | %s | %s", cells...)
}

func when(is bool, text string) string {
	if is {
		return text
	}
	return ""
}

func disturbed(runs int) string {
	if runs == 0 {
		return ""
	}
	return fmt.Sprintf(" (disturbed: %d)", runs)
}

// number has three digits that mean something, and commas.
func number(x float64) string {
	switch {
	case x >= 99.95:
		s := fmt.Sprintf("%.0f", x)
		for at := len(s) - 3; at > 0; at -= 3 {
			s = s[:at] + "," + s[at:]
		}
		return s
	case x >= 9.995:
		return fmt.Sprintf("%.1f", x)
	case x >= 0.9995 || x == 0:
		return fmt.Sprintf("%.2f", x)
	}
	return fmt.Sprintf("%.3f", x)
}

// The section of the document that update writes. What stands around it is
// written by people.
const sectionBegins, sectionEnds = "<!-- written by go run ./bench -update -->\n", "<!-- end -->\n"

// update writes the section of the document anew, and the charts in a folder
// beside it.
func (r *results) update(document, charts string) error {
	text, err := os.ReadFile(document)
	if err != nil {
		return err
	}
	before, rest, found := bytes.Cut(text, []byte(sectionBegins))
	_, after, ended := bytes.Cut(rest, []byte(sectionEnds))
	if !found || !ended {
		return fmt.Errorf("%s has no section between %q and %q", document, sectionBegins, sectionEnds)
	}
	folder := filepath.Join(filepath.Dir(document), charts)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	for _, w := range r.Workloads {
		if rows := r.rows(w); len(rows) > 0 && !w.Own {
			if err := os.WriteFile(path.Join(folder, w.Name+".svg"), []byte(chart(w, rows)), 0o644); err != nil {
				return err
			}
		}
	}
	return os.WriteFile(document, slices.Concat(before, []byte(sectionBegins), []byte(r.markdown(charts)), []byte(sectionEnds), after), 0o644)
}

// chart is an SVG with a bar per engine, the best first, and a line for the spread. It
// reads on light and on dark ground.
func chart(w named, rows []row) string {
	const label, width, high, gap = 170, 420, 22, 8
	rows = slices.Clone(rows)
	most := 0.0
	for _, l := range rows {
		most = max(most, l.value.Most)
	}
	slices.SortStableFunc(rows, func(a, b row) int {
		if w.Unit == "ms" {
			return cmp.Compare(a.value.Median, b.value.Median)
		}
		return cmp.Compare(b.value.Median, a.value.Median)
	})
	better := "more is better"
	if w.Unit == "ms" {
		better = "less is better"
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" role="img" aria-label="%s">
<style>
text { font: 13px system-ui, sans-serif; fill: #1f2328 } .small { font-size: 11px; fill: #59636e }
rect { fill: #8c959f } .ours { fill: #0969da } line { stroke: #1f2328; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .small { fill: #9198a1 } rect { fill: #6e7681 } .ours { fill: #4493f8 } line { stroke: #e6edf3 } }
</style>
<text x="0" y="14">%s</text>
<text x="0" y="31" class="small">%s, median and spread; %s</text>
`, label+width+90, 42+len(rows)*(high+gap), label+width+90, escaped(w.About), escaped(w.About), w.Unit, better)
	x := func(v float64) float64 { return label + v/most*width }
	for i, l := range rows {
		y := 42 + i*(high+gap)
		class := ""
		if l.engine == "tasker" {
			class = ` class="ours"`
		}
		fmt.Fprintf(&b, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n<rect%s x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\" rx=\"2\"/>\n",
			label-8, y+high/2+5, l.engine, class, label, y, x(l.value.Median)-label, high)
		if l.value.Least < l.value.Most {
			fmt.Fprintf(&b, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\"/>\n", x(l.value.Least), x(l.value.Most), y+high/2, y+high/2)
		}
		fmt.Fprintf(&b, "<text x=\"%.1f\" y=\"%d\">%s</text>\n", x(l.value.Most)+6, y+high/2+5, number(l.value.Median))
	}
	return b.String() + "</svg>\n"
}

func escaped(text string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(text)) // a Builder takes everything
	return b.String()
}
