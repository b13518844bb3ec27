package config

import (
	"fmt"
	"strings"
)

// Problem is one thing that is wrong with the settings.
type Problem struct {
	Place   string // tasker.yaml:12:3, an environment variable, or a flag
	InFile  bool
	Message string
}

// String is PLACE: MESSAGE.
func (p Problem) String() string { return p.Place + ": " + p.Message }

// Errors lists everything that is wrong: the file in its order, then the
// environment and flags in the order of the settings.
type Errors []Problem

// Error has a line per problem.
func (p Errors) Error() string {
	lines := make([]string, len(p))
	for i := range p {
		lines[i] = p[i].String()
	}
	return strings.Join(lines, "\n")
}

// InFile reports whether the file is at fault, and not only this call of the
// program.
func (p Errors) InFile() bool {
	for i := range p {
		if p[i].InFile {
			return true
		}
	}
	return false
}

func (p *Errors) add(place string, inFile bool, format string, args ...any) {
	*p = append(*p, Problem{Place: place, InFile: inFile, Message: fmt.Sprintf(format, args...)})
}

func (p Errors) err() error {
	if len(p) == 0 {
		return nil
	}
	return p
}
