package worker

import (
	"os"
	"runtime/debug"
)

// TuneMemory lets the heap of a worker's process grow to five times what is in
// use before the garbage collector runs, unless GOGC says something else. A
// worker keeps little (some KiB per task that it holds) and makes much litter:
// at Go's default of twice, the collector takes a quarter of its CPU time. It
// changes the whole process, so Run leaves it to main.
func TuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
}
