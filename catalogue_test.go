package tasker

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// The table in docs/events.md is made of the catalogue.
func TestTheTableOfEventsIsCurrent(t *testing.T) {
	var b strings.Builder
	b.WriteString("| name | also | what has happened | `data` |\n|---|---|---|---|\n")
	for _, k := range EventCatalogue {
		also := ""
		if k.Also != "" {
			also = "`" + k.Also + "`"
		}
		var data []string
		for _, f := range k.Fields {
			text := "`" + f.Name + "` "
			if f.Optional {
				text += "(optional) "
			}
			text += f.Type
			if f.Unit != "" {
				text += " (" + f.Unit + ")"
			}
			data = append(data, text+": "+f.Is)
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", k.Name, also, k.When, strings.Join(data, "; "))
	}
	const file, begin, end = "docs/events.md", "<!-- made of the catalogue: make docs -->\n", "<!-- until here -->"
	doc, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(doc), begin)
	_, after, closed := strings.Cut(rest, end)
	if !found || !closed {
		t.Fatalf("%s has not the lines %q and %q", file, begin, end)
	}
	want := before + begin + b.String() + end + after
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if want != string(doc) {
		t.Errorf("%s is not current; run: make docs", file)
	}
}

func TestEventsAreHeldAgainstTheCatalogue(t *testing.T) {
	for _, c := range []struct {
		event Event
		wrong string // a part of what is said; empty: nothing is
	}{
		{Event{ID: 1, Name: "order.fulfilled", Data: []byte(`{"x": 1}`)}, ""},
		{Event{ID: 1, Name: EventTaskStarted, TaskID: 7}, ""},
		{Event{ID: 1, Name: EventTaskFailed, TaskID: 7, Data: []byte(`{"message": "m", "steps": ["a"]}`)}, ""},
		{Event{ID: 1, Name: EventGatePaused, Data: []byte(`{"scope": "queue", "name": "default", "by": "me"}`)}, ""},
		{Event{ID: 1, Name: EventStepRetry, TaskID: 7, StepID: 8, Attempt: 1, Data: []byte(`{"class": "C", "message": "m", "retry_in_seconds": 1.5}`)}, ""},
		{Event{ID: 1, Name: "task.unheard", TaskID: 7}, "not in the catalogue"},
		{Event{ID: 1, Name: EventTaskStarted}, "it is of task 0"},
		{Event{ID: 1, Name: EventTaskStarted, TaskID: 7, StepID: 8}, "it is of step 8"},
		{Event{ID: 1, Name: EventStepStarted, TaskID: 7, StepID: 8}, "it is of no attempt"},
		{Event{ID: 1, Name: EventTaskFailed, TaskID: 7, Data: []byte(`{"message": "m"}`)}, "steps is missing"},
		{Event{ID: 1, Name: EventTaskFailed, TaskID: 7, Data: []byte(`{"message": 1, "steps": []}`)}, "message is 1, which is no string"},
		{Event{ID: 1, Name: EventTaskFailed, TaskID: 7, Data: []byte(`{"message": "m", "steps": [1]}`)}, "which is no strings"},
		{Event{ID: 1, Name: EventTaskPriority, TaskID: 7, Data: []byte(`{"from": 1.5, "to": 2}`)}, "from is 1.5, which is no integer"},
		{Event{ID: 1, Name: EventTaskStarted, TaskID: 7, Data: []byte(`{"more": 1}`)}, "more is not in the catalogue"},
		{Event{ID: 1, Name: EventTaskStarted, TaskID: 7, Data: []byte(`[]`)}, "data is no object"},
	} {
		err := c.event.Check()
		if got := fmt.Sprint(err); (err == nil) != (c.wrong == "") || !strings.Contains(got, c.wrong) && c.wrong != "" {
			t.Errorf("%s %s: %v, not %q", c.event.Name, c.event.Data, err, c.wrong)
		}
	}
}
