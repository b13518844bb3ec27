package devstack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// process is a child with a name, for messages.
type process struct {
	name string
	*Child
}

type command struct {
	name    string // for messages
	path    string
	args    []string
	dir     string
	env     []string  // besides ours
	input   io.Reader // nil: empty
	output  io.Writer
	runAs   *account       // nil: as we are
	onDeath syscall.Signal // what the child gets when we die
}

func (c command) start() (*process, error) {
	cmd := exec.Command(c.path, c.args...)
	cmd.Dir = c.dir
	cmd.Env = append(childEnvironment(), c.env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.input, c.output, c.output
	if c.runAs != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.runAs.credential()}
	}
	child, err := StartChild(cmd, c.onDeath)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", c.name, err)
	}
	return &process{c.name, child}, nil
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
	if err := syscall.Kill(p.PID, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("send %s to %s (pid %d): %w", sig, p.name, p.PID, err)
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
	return fmt.Errorf("%s (pid %d) didn't stop in time and was killed: %w", p.name, p.PID, ctx.Err())
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
