package stage

import (
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/taskerhq/tasker/devstack"
)

// Main runs a measuring program until it is done or interrupted. The program ends
// with status 1 when it fails.
func Main(name string, measure func(context.Context) error) {
	ctx, stop := devstack.Told()
	err := measure(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, name+":", err)
		os.Exit(1)
	}
}

// Spread is how a value varied over the rounds.
type Spread struct{ Least, Median, Most float64 }

// Collapsed says of each rate whether it is below half of the best one: then something
// went wrong in its round, which a median would hide.
func Collapsed(rates []float64) []bool {
	collapsed, half := make([]bool, len(rates)), slices.Max(rates)/2
	for i, rate := range rates {
		collapsed[i] = rate < half
	}
	return collapsed
}

// SpreadOf the values, of which there is at least one, and which it sorts.
func SpreadOf(values []float64) Spread {
	slices.Sort(values)
	n := len(values)
	return Spread{values[0], (values[(n-1)/2] + values[n/2]) / 2, values[n-1]}
}
