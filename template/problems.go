package template

import (
	"fmt"
	"strings"
)

// Errors lists everything that is wrong, in the order of the file.
type Errors []Problem

// Error has a line per problem: file:line:column: message.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, p := range e {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// String is file:line:column: message, a form that editors jump to.
func (p Problem) String() string {
	return fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Column, p.Message)
}

// maxProblems keeps the report on a file that is no template at all readable.
const maxProblems = 1000

// place is where something stands in the file.
type place struct{ line, column int }

// problems collects what is wrong with one file.
type problems struct {
	file        string
	list        []Problem
	environment string // the overlay that is being read, or ""
	cut         bool
}

func (p *problems) add(at place, format string, args ...any) {
	if len(p.list) >= maxProblems {
		p.cut = true
		return
	}
	p.list = append(p.list, Problem{
		File:    p.file,
		Line:    max(at.line, 1),
		Column:  max(at.column, 1),
		Message: fmt.Sprintf(format, args...),
	})
}

// within starts a collection for the template as an environment's overlay
// makes it.
func (p *problems) within(environment string) *problems {
	return &problems{file: p.file, environment: environment}
}

// take adds what was found with an overlay. What the base is guilty of as well
// has been told already.
func (p *problems) take(overlay *problems) {
	known := make(map[Problem]bool, len(p.list))
	for _, problem := range p.list {
		known[problem] = true
	}
	for _, problem := range overlay.list {
		if !known[problem] {
			p.add(place{problem.Line, problem.Column}, "%s (in environment %q)", problem.Message, overlay.environment)
		}
	}
	p.cut = p.cut || overlay.cut
}

func (p *problems) err() error {
	if len(p.list) == 0 {
		return nil
	}
	list := sorted(p.list)
	if p.cut {
		last := list[len(list)-1]
		last.Message = "more is wrong than is listed here; mend these first"
		list = append(list, last)
	}
	return list
}
