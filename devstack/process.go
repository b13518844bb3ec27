package devstack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// process is a child that this program answers for until it has exited.
//
// The child asks the kernel for a signal when its parent dies (PR_SET_PDEATHSIG,
// on Linux). "Parent" means the thread that forked, not the process: a child
// started from an ordinary goroutine would be ended whenever the Go runtime
// retires that thread. So one goroutine, locked to its thread, forks the child
// and then stays in wait(2) until the child is gone.
type process struct {
	name   string
	pid    int
	exited chan struct{} // closed after the child was reaped
	err    error         // of wait; read it after exited is closed
}

type command struct {
	name    string // for messages
	path    string
	args    []string
	dir     string
	output  io.Writer
	runAs   *account       // nil: as we are
	onDeath syscall.Signal // what the child gets when we die
}

func (c command) start() (*process, error) {
	cmd := exec.Command(c.path, c.args...)
	cmd.Dir = c.dir
	cmd.Env = childEnvironment()
	cmd.Stdout, cmd.Stderr = c.output, c.output
	// A process group of its own: Ctrl-C in the terminal reaches this program
	// alone, which then stops the servers after what still needs them.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	signalOnParentDeath(cmd.SysProcAttr, c.onDeath)
	if c.runAs != nil {
		cmd.SysProcAttr.Credential = c.runAs.credential()
	}

	p := &process{name: c.name, exited: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			p.pid = cmd.Process.Pid
		}
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		close(p.exited)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", c.name, err)
	}
	return p, nil
}

// run starts the command and waits for its end. The error carries its output.
func (c command) run(ctx context.Context) error {
	var output bytes.Buffer
	c.output = &output
	p, err := c.start()
	if err != nil {
		return err
	}
	select {
	case <-p.exited:
	case <-ctx.Done():
		_ = p.signal(syscall.SIGKILL)
		<-p.exited
		return fmt.Errorf("%s: %w", c.name, ctx.Err())
	}
	if p.err != nil {
		return fmt.Errorf("%s: %w\n%s", c.name, p.err, strings.TrimSpace(output.String()))
	}
	return nil
}

func (p *process) running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// signal does nothing when the child was reaped: its number may belong to
// another process by then.
func (p *process) signal(sig syscall.Signal) error {
	if !p.running() {
		return nil
	}
	if err := syscall.Kill(p.pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("send %s to %s (pid %d): %w", sig, p.name, p.pid, err)
	}
	return nil
}

// stop asks with sig, and when ctx ends before the child does, kills it and
// says so.
func (p *process) stop(ctx context.Context, sig syscall.Signal) error {
	if err := p.signal(sig); err != nil {
		return err
	}
	select {
	case <-p.exited:
		return nil
	case <-ctx.Done():
	}
	if err := p.kill(); err != nil {
		return err
	}
	return fmt.Errorf("%s (pid %d) didn't stop in time and was killed: %w", p.name, p.pid, ctx.Err())
}

// kill ends the child without ado and waits until it is gone.
func (p *process) kill() error {
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.exited
	return nil
}

// waitReady calls ready every few milliseconds until it returns nil. It gives
// up when the child exits, at once, or when ctx ends.
func (p *process) waitReady(ctx context.Context, ready func(context.Context) error) error {
	const pause = 10 * time.Millisecond
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.exited:
			if p.err != nil {
				return fmt.Errorf("%s ended during its start: %w", p.name, p.err)
			}
			return fmt.Errorf("%s ended during its start", p.name)
		case <-ctx.Done():
			return fmt.Errorf("%s isn't ready: %w (last answer: %w)", p.name, ctx.Err(), err)
		case <-time.After(pause):
		}
	}
}

// childEnvironment is ours without the variables that change what Postgres
// does (PGDATA, PGPORT, PGOPTIONS …), and with messages in English, which
// startup errors are recognised by.
func childEnvironment() []string {
	env := []string{"LC_ALL=C"}
	for _, entry := range os.Environ() {
		if !strings.HasPrefix(entry, "PG") && !strings.HasPrefix(entry, "LC_") && !strings.HasPrefix(entry, "NOTIFY_SOCKET=") {
			env = append(env, entry)
		}
	}
	return env
}

// said is the end of what a server wrote to its log after the given offset,
// for error messages.
func said(path string, offset int64) string {
	const most = 2000
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	content = content[min(offset, int64(len(content))):]
	if len(content) > most {
		content = content[len(content)-most:]
		if i := bytes.IndexByte(content, '\n'); i >= 0 {
			content = content[i+1:]
		}
	}
	return strings.TrimSpace(string(content))
}
