package tasker

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/state_machine.md anew")

var (
	taskStates = []TaskState{TaskPending, TaskInProgress, TaskComplete, TaskError, TaskCancelled, TaskResolvedManually}
	stepStates = []StepState{StepPending, StepEnqueued, StepInProgress, StepWaitingForRetry, StepComplete, StepError, StepCancelled, StepSkipped, StepResolvedManually}
)

func TestEveryStateCanBeReachedAndFinishedTasksStay(t *testing.T) {
	reached := map[TaskState]bool{TaskPending: true}
	for was, list := range TaskTransitions {
		for _, becomes := range list {
			reached[becomes] = true
			if was == becomes {
				t.Errorf("task: %s → %s is no transition", was, becomes)
			}
		}
	}
	for _, s := range taskStates {
		if !reached[s] {
			t.Errorf("no transition leads a task to %s", s)
		}
	}
	for _, s := range []TaskState{TaskComplete, TaskCancelled, TaskResolvedManually} {
		if len(TaskTransitions[s]) > 0 {
			t.Errorf("a task leaves %s", s)
		}
	}
	steps := map[StepState]bool{StepPending: true}
	for _, list := range StepTransitions {
		for _, becomes := range list {
			steps[becomes] = true
		}
	}
	for _, s := range stepStates {
		if !steps[s] {
			t.Errorf("no transition leads a step to %s", s)
		}
		// "any step that is not finished → cancelled | skipped | resolved_manually";
		// a step in error counts: an operator may still settle it.
		open := !s.Finished() || s == StepError
		for _, settled := range []StepState{StepCancelled, StepSkipped, StepResolvedManually} {
			if s.CanBecome(settled) != open {
				t.Errorf("step: %s → %s is %t", s, settled, s.CanBecome(settled))
			}
		}
	}
}

func TestTheStateMachineDocumentIsCurrent(t *testing.T) {
	var doc strings.Builder
	doc.WriteString(`# State machines

Written by ` + "`make docs`" + ` from the one table in ` + "`states.go`" + `; a test keeps it current. The
database refuses every transition that is not here (SQLSTATE TK006).

## Task

` + "```mermaid\nstateDiagram-v2\n    [*] --> pending\n")
	for _, was := range taskStates {
		for _, becomes := range TaskTransitions[was] {
			fmt.Fprintf(&doc, "    %s --> %s\n", was, becomes)
		}
	}
	doc.WriteString("```\n\n| from | to |\n|---|---|\n")
	for _, was := range taskStates {
		fmt.Fprintf(&doc, "| %s | %s |\n", was, list(TaskTransitions[was]))
	}
	doc.WriteString("\n## Step\n\n```mermaid\nstateDiagram-v2\n    [*] --> pending\n")
	for _, was := range stepStates {
		for _, becomes := range StepTransitions[was] {
			fmt.Fprintf(&doc, "    %s --> %s\n", was, becomes)
		}
	}
	doc.WriteString("```\n\n| from | to | dependents may start | an attempt is out |\n|---|---|---|---|\n")
	for _, was := range stepStates {
		fmt.Fprintf(&doc, "| %s | %s | %s | %s |\n", was, list(StepTransitions[was]), yes(was.Satisfied()), yes(was.Outstanding()))
	}
	const file = "docs/state_machine.md"
	if *update {
		if err := os.WriteFile(file, []byte(doc.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	written, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(written) != doc.String() {
		t.Error("docs/state_machine.md is not current; run: make docs")
	}
}

func list[S ~string](states []S) string {
	if len(states) == 0 {
		return "–"
	}
	words := make([]string, len(states))
	for i, s := range states {
		words[i] = string(s)
	}
	return strings.Join(words, ", ")
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}
