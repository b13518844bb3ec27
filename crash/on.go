//go:build crashpoints

package crash

import (
	"os"
	"syscall"
)

var armed = Point(os.Getenv("TASKER_CRASH_AT"))

// At kills the process if it is to die at this place.
func At(p Point) {
	if p == armed {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL) // it doesn't return
		select {}
	}
}
