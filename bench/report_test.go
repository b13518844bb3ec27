package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// measured has two engines that took turns for three rounds.
func measured() *results {
	r := &results{When: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Machine: "2 processors", Postgres: "15",
		Workloads: []named{{Name: "w1", About: "tasks of 10 steps & more", Unit: "steps/s"}, {Name: "w4", About: "one step", Unit: "ms"}, {Name: "w5", About: "that nobody ran", Unit: "steps/s"}},
		Engines:   []named{{Name: "tasker", About: "ours"}, {Name: "peer", About: "theirs"}}}
	for i, rates := range [][2]float64{{2000, 400}, {1000, 100}, {30000, 1500}} {
		for n, e := range r.Engines {
			r.Figures = append(r.Figures,
				figure{Workload: "w1", Engine: e.Name, Round: i + 1, Value: rates[n], Dirty: n == 1 && i == 0},
				figure{Workload: "w4", Engine: e.Name, Round: i + 1, Value: 1000 / rates[n], P99: 50})
		}
	}
	return r
}

func TestTheReportComparesRunsOfTheSameRound(t *testing.T) {
	t.Parallel()
	text := measured().markdown("")
	for _, want := range []string{
		"| tasker | 2,000 (1,000–30,000) |  |",                       // the first is what others are compared with
		"| peer (disturbed: 1) | 400 (100–1,500) | 10.0 (5.00–20.0)", // 2000/400, 1000/100, 30000/1500
		"| peer | 2.50 (0.667–10.0) | 50.0 | 10.0 (5.00–20.0)",       // of times, less is better
		"**w1, peer: a round collapsed to 100 steps/s, below half of the best.**",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the report lacks %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "w4, peer: a round collapsed") {
		t.Errorf("a time that is short is taken for a collapse:\n%s", text)
	}
	if strings.Contains(text, "nobody ran") {
		t.Errorf("the report shows a workload without figures:\n%s", text)
	}
}

func TestUpdateWritesItsSectionAlone(t *testing.T) {
	t.Parallel()
	document := filepath.Join(t.TempDir(), "README.md")
	if err := os.WriteFile(document, []byte("before\n"+sectionBegins+"old\n"+sectionEnds+"after\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := measured()
	if err := r.update(document, "charts"); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	if want := "before\n" + sectionBegins + r.markdown("charts") + sectionEnds + "after\n"; string(text) != want {
		t.Errorf("the document is\n%s\nwant\n%s", text, want)
	}
	for _, name := range []string{"w1", "w4"} {
		chart, err := os.Open(filepath.Join(filepath.Dir(document), "charts", name+".svg"))
		if err != nil {
			t.Fatal(err)
		}
		defer chart.Close()
		d := xml.NewDecoder(chart)
		for err == nil {
			_, err = d.Token()
		}
		if !errors.Is(err, io.EOF) {
			t.Errorf("%s.svg is no XML: %v", name, err)
		}
	}
	if err := r.update(filepath.Join("..", "LICENSE"), "charts"); err == nil || !strings.Contains(err.Error(), "has no section") {
		t.Errorf("a document without the section gave %v", err)
	}
}
