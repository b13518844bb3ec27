package dag

import (
	"errors"
	"fmt"
	"strings"
)

// DuplicateNameError says that two steps share a name.
type DuplicateNameError struct {
	Name          string
	First, Second int // positions
}

func (e *DuplicateNameError) Error() string {
	return fmt.Sprintf("two steps are named %q; rename one of them", e.Name)
}

// UnknownDependencyError says that a step depends on one that does not exist.
type UnknownDependencyError struct {
	Step       string
	Position   int // of Step
	Dependency string
}

func (e *UnknownDependencyError) Error() string {
	return fmt.Sprintf("step %q depends on %q, and there is no such step", e.Step, e.Dependency)
}

// SelfDependencyError says that a step depends on itself, so it could never
// start.
type SelfDependencyError struct {
	Step     string
	Position int // of Step
}

func (e *SelfDependencyError) Error() string {
	return fmt.Sprintf("step %q depends on itself; remove that dependency", e.Step)
}

// CycleError says that steps wait for one another in a circle, so that none of
// them could ever start.
type CycleError struct {
	Cycle []string // each name once; every step depends on the one before it, and the first on the last
}

func (e *CycleError) Error() string {
	return "steps depend on one another in a circle: " + e.String() + "; remove one of these dependencies"
}

// String spells the cycle out in the order in which the steps would run, as
// charge → ship → charge. A long cycle is shortened in its middle.
func (e *CycleError) String() string {
	const (
		arrow  = " → "
		most   = 24
		kept   = 10 // names shown at either end of a long cycle
		closed = 1  // the first name again, at the end
	)
	if len(e.Cycle) == 0 {
		return ""
	}
	names := append(make([]string, 0, most+closed), e.Cycle...)
	if len(names) > most {
		names = append(names[:kept:kept], fmt.Sprintf("(%d more)", len(e.Cycle)-2*kept))
		names = append(names, e.Cycle[len(e.Cycle)-kept:]...)
	}
	return strings.Join(append(names, e.Cycle[0]), arrow)
}

// Problems takes an error of New apart into the typed errors that it joins. It
// is nil for nil, and the error itself when that came from elsewhere.
func Problems(err error) []error {
	if err == nil {
		return nil
	}
	var all joined
	if errors.As(err, &all) {
		return all.Unwrap()
	}
	return []error{err}
}

type joined interface{ Unwrap() []error }

// faults collects what is wrong with a template.
type faults struct{ list []error }

func (f *faults) add(err error) { f.list = append(f.list, err) }

func (f *faults) err() error { return errors.Join(f.list...) }
