//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/taskerhq/tasker/devstack"
)

// process is a worker or a Sidekiq that dies and comes back, with wires of its
// own to Postgres and Redis.
type process struct {
	name            string // of its log
	ruby            bool
	postgres, redis *proxy
	command         func(*version) []string
	env             []string

	log *os.File
	of  *version // what it runs from its next start on

	mu    sync.Mutex
	child *devstack.Child
}

// reach makes the URL one that leads through the proxy.
func reach(server string, p *proxy) string {
	u, err := url.Parse(server)
	if err != nil {
		panic(err) // it is ours
	}
	u.Host = p.address()
	return u.String()
}

func hostOf(server string) string {
	u, err := url.Parse(server)
	if err != nil {
		panic(err) // it is ours
	}
	return net.JoinHostPort(u.Hostname(), u.Port())
}

func (r *run) newProcess(name string, ruby bool, command func(*version) []string) (*process, error) {
	p := &process{name: name, ruby: ruby, command: command, of: r.this}
	var err error
	if p.postgres, err = newProxy(hostOf(r.postgres.URL("chaos")), true); err != nil {
		return nil, err
	}
	if p.redis, err = newProxy(hostOf(r.redis.URL(0)), false); err != nil {
		return nil, err
	}
	if p.log, err = os.Create(filepath.Join(r.dir, name+".log")); err != nil {
		return nil, err
	}
	redis := reach(r.redis.URL(0), p.redis)
	p.env = append(os.Environ(), "TASKER_DATABASE_URL="+reach(r.postgres.URL("chaos"), p.postgres), "TASKER_REDIS_URL="+redis, "REDIS_URL="+redis)
	return p, p.start()
}

// start starts it, with more of environment and arguments.
func (p *process) start(more ...string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	command := append(p.command(p.of), more...)
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr = append(p.env[:len(p.env):len(p.env)], "RUBYLIB="+p.of.bridge), p.log, p.log
	child, err := devstack.StartChild(cmd, syscall.SIGKILL)
	if err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	p.child = child
	return nil
}

func (p *process) pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.child.PID
}

// signal does nothing to one that has ended: its number may be another's by then.
func (p *process) signal(s syscall.Signal) error {
	if !p.alive() {
		return nil
	}
	if err := syscall.Kill(p.pid(), s); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return nil
}

func (p *process) exited() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.child.Exited()
}

// end sends the signal and waits until it is gone; one that takes more than half
// a minute is killed.
func (p *process) end(s syscall.Signal) error {
	if err := p.signal(s); err != nil {
		return err
	}
	select {
	case <-p.exited():
		return nil
	case <-time.After(40 * time.Second):
		if err := p.signal(syscall.SIGKILL); err != nil {
			return err
		}
		<-p.exited()
		return fmt.Errorf("%s did not stop within 40 s of %s", p.name, s)
	}
}

func (p *process) alive() bool {
	select {
	case <-p.exited():
		return false
	default:
		return true
	}
}

// identity is what tasker.workers and tasker.processes know it by.
func (p *process) identity() string {
	host, _ := os.Hostname() // empty where it is empty for them too
	return host + ":" + strconv.Itoa(p.pid())
}

// replace puts one of that version in its place, as a deployment does.
func (p *process) replace(by *version) error {
	if err := p.end(syscall.SIGTERM); err != nil {
		return err
	}
	p.of = by
	return p.start()
}

func (p *process) close() {
	_ = p.signal(syscall.SIGCONT) // it may be stopped
	_ = p.end(syscall.SIGKILL)    // at the end
	p.postgres.close()
	p.redis.close()
	_ = p.log.Close()
}

// startAll starts two workers and two Sidekiqs.
func (r *run) startAll(ctx context.Context) error {
	for n := range 2 {
		p, err := r.newProcess(fmt.Sprintf("worker-%d", n+1), false, func(v *version) []string {
			return []string{v.program, "worker", fmt.Sprintf("-hasty=%t", n == 0)}
		})
		if err != nil {
			return err
		}
		r.workers = append(r.workers, p)
	}
	for n := range 2 {
		p, err := r.newProcess(fmt.Sprintf("sidekiq-%d", n+1), true, func(v *version) []string {
			return []string{"sidekiq", "-r", v.boot, "-q", "default", "-c", "5", "-t", "5"}
		})
		if err != nil {
			return err
		}
		r.sidekiqs = append(r.sidekiqs, p)
	}
	return r.until(ctx, "all processes are there", func() (bool, error) {
		var there int
		err := r.pool.QueryRow(ctx, `SELECT (SELECT count(*) FROM tasker.workers WHERE state = 'alive') + (SELECT count(*) FROM tasker.processes)`).Scan(&there)
		return there >= 4, err
	})
}
