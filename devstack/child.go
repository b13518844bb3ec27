package devstack

import (
	"os/exec"
	"runtime"
	"syscall"
)

// Child is a process that this program answers for until it has exited.
type Child struct {
	PID    int
	exited chan struct{}
	err    error
}

// StartChild starts the command in a process group of its own: Ctrl-C in the
// terminal reaches this program alone, which then stops its children in order.
//
// The child asks the kernel for a signal when its parent dies (PR_SET_PDEATHSIG,
// on Linux). "Parent" means the thread that forked, not the process: a child
// started from an ordinary goroutine would be ended whenever the Go runtime
// retires that thread. So one goroutine, locked to its thread, forks the child
// and then stays in wait(2) until the child is gone.
func StartChild(cmd *exec.Cmd, onDeath syscall.Signal) (*Child, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	signalOnParentDeath(cmd.SysProcAttr, onDeath)
	c := &Child{exited: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			c.PID = cmd.Process.Pid
		}
		started <- err
		if err != nil {
			return
		}
		c.err = cmd.Wait()
		close(c.exited)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return c, nil
}

// Exited is closed after the child was reaped.
func (c *Child) Exited() <-chan struct{} { return c.exited }

// Err is that of wait; read it after Exited is closed.
func (c *Child) Err() error { return c.err }
