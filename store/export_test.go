package store

import (
	"errors"
	"testing"
)

// WriteTogether writes units in one group, whatever else comes.
func (w *Writer) WriteTogether(units []*Unit) error {
	var errs []error
	for _, o := range w.flush(units) {
		errs = append(errs, o.err)
	}
	return errors.Join(errs...)
}

// ClaimTogether claims tasks in one call, and with those of opening templates
// their first attempts.
func (c *Claimer) ClaimTogether(tasks, opening []int64) (map[int64]*Claimed, error) {
	return c.claim(tasks, opening, 0)
}

// EncodeAllocations counts what it takes to lay units out for Postgres.
func EncodeAllocations(units []*Unit) float64 {
	return testing.AllocsPerRun(10, func() { encode(1, units) })
}
