package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/taskerhq/tasker/devstack"
)

// child is a program that was started. On Linux it dies with this one.
type child struct {
	name string
	*devstack.Child
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
	defer log.Close() // the child has its own
	c, err := devstack.StartChild(cmd, syscall.SIGKILL)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return &child{name, c}, nil
}

// stop asks the child to end, and kills it when it takes longer than it may. A
// child that has ended already is left alone.
func (c *child) stop(within time.Duration) error {
	select {
	case <-c.Exited():
		return nil
	default:
	}
	if within > 0 {
		_ = syscall.Kill(c.PID, syscall.SIGTERM) // it may be gone by now
		select {
		case <-c.Exited():
			return nil
		case <-time.After(within):
		}
	}
	_ = syscall.Kill(c.PID, syscall.SIGKILL)
	<-c.Exited()
	return fmt.Errorf("%s had to be killed, %s after SIGTERM", c.name, seconds(within))
}

// status is how the child has ended.
func (c *child) status() string {
	if err := c.Err(); err != nil {
		return err.Error()
	}
	return "exit status 0"
}
