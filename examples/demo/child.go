package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// child is a program that was started. On Linux it dies with this one.
type child struct {
	name   string
	pid    int
	exited chan struct{} // closed after the child was reaped
	err    error         // of wait; read it after exited is closed
}

// start starts a program in the app's folder; its output goes to a log of its
// name, standard output to stdout unless that is nil.
func (d *demo) start(name string, stdout io.Writer, program string, args ...string) (*child, error) {
	log, err := os.Create(filepath.Join(d.logs, name+".log"))
	if err != nil {
		return nil, fmt.Errorf("open the log of %s: %w", name, err)
	}
	cmd := exec.Command(program, args...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = d.app, d.env, log, log
	if stdout != nil {
		cmd.Stdout = stdout
	}
	// A process group of its own: Ctrl-C in the terminal reaches this program
	// alone, which then stops the children in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	killOnParentDeath(cmd.SysProcAttr)

	c := &child{name: name, exited: make(chan struct{})}
	started := make(chan error)
	go func() {
		// To the kernel, the parent is the thread that forks: it has to live as
		// long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer log.Close()
		err := cmd.Start()
		if err == nil {
			c.pid = cmd.Process.Pid
		}
		started <- err
		if err == nil {
			c.err = cmd.Wait()
			close(c.exited)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return c, nil
}

// stop asks the child to end, and kills it when it takes longer than it may. A
// child that has ended already is left alone.
func (c *child) stop(within time.Duration) error {
	select {
	case <-c.exited:
		return nil
	default:
	}
	if within > 0 {
		_ = syscall.Kill(c.pid, syscall.SIGTERM) // it may be gone by now
		select {
		case <-c.exited:
			return nil
		case <-time.After(within):
		}
	}
	_ = syscall.Kill(c.pid, syscall.SIGKILL)
	<-c.exited
	return fmt.Errorf("%s had to be killed, %s after SIGTERM", c.name, seconds(within))
}

// status is how the child has ended.
func (c *child) status() string {
	if c.err != nil {
		return c.err.Error()
	}
	return "exit status 0"
}
