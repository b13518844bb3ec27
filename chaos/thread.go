//go:build linux

package main

import (
	"os/exec"
	"runtime"
)

// keepThread starts the command and waits for its end on one thread: the kernel
// ends a child with the thread that it was started from.
func keepThread(cmd *exec.Cmd, started chan<- error, ended chan<- struct{}) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := cmd.Start()
	started <- err
	if err == nil {
		_ = cmd.Wait() // how it ended is what the faults are about
		close(ended)
	}
}
