package devstack

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// RedisOptions says how to start Redis. Only Dir is required.
type RedisOptions struct {
	Dir        string // keeps password, redis.conf, redis.log and, with AppendOnly, the data; created when missing
	Port       int    // 0: one that is free
	Binary     string // path of the program; "": FindRedis
	Databases  int    // 0: 16
	AppendOnly bool   // keep the data over a restart; false: memory alone
}

// Redis is a private server. Its methods may be called from any goroutine.
type Redis struct {
	options  RedisOptions
	port     int
	password string

	mu      sync.Mutex // held during start and stop
	process *process
}

// StartRedis starts a server and returns when it takes commands. The server
// lives until Stop, not until ctx ends.
func StartRedis(ctx context.Context, options RedisOptions) (*Redis, error) {
	dir, err := filepath.Abs(options.Dir)
	if err != nil {
		return nil, fmt.Errorf("start Redis: find folder %s: %w", options.Dir, err)
	}
	options.Dir = dir
	if options.Databases == 0 {
		options.Databases = 16
	}
	if options.Binary == "" {
		if options.Binary, err = FindRedis(); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(options.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("create Redis' folder: %w", err)
	}
	r := &Redis{options: options}
	if err := r.protect(); err != nil {
		return nil, err
	}
	err = withPort(options.Port, "Redis", func(port int) error {
		r.port = port
		return r.start(ctx)
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// LogFile is the path of the server's log.
func (r *Redis) LogFile() string { return filepath.Join(r.options.Dir, "redis.log") }

// Port is the TCP port on 127.0.0.1.
func (r *Redis) Port() int { return r.port }

// PID is the process id of the server; 0 while it isn't running.
func (r *Redis) PID() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.process == nil || !r.process.running() {
		return 0
	}
	return r.process.PID
}

// Done is closed when the server that is running now has exited, for whatever
// reason.
func (r *Redis) Done() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.process.exited
}

// URL is the address of database number db, with the password. It names the user, as redis-cli
// takes a URL without one for a user with an empty name.
func (r *Redis) URL(db int) string {
	u := url.URL{Scheme: "redis", User: url.UserPassword("default", r.password), Host: address(r.port), Path: "/" + strconv.Itoa(db)}
	return u.String()
}

// Stop ends the server in good order. When ctx ends first, it is killed. A
// stopped server can be started again with Restart; its data is gone unless
// AppendOnly was set.
func (r *Redis) Stop(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.process.stop(ctx, syscall.SIGTERM)
}

// Kill ends the server with SIGKILL.
func (r *Redis) Kill() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.process.kill()
}

// Restart stops the server if it runs, and starts it on the same port.
func (r *Redis) Restart(ctx context.Context) error {
	if err := r.Stop(ctx); err != nil {
		return err
	}
	return withPort(r.port, "Redis", func(int) error { return r.start(ctx) })
}

// settingsFile holds the password: every account of the machine can read arguments.
func (r *Redis) settingsFile() string { return filepath.Join(r.options.Dir, "redis.conf") }

// protect gives the server a password, the one that it had before if there is one.
func (r *Redis) protect() (err error) {
	if r.password, err = readPassword(r.options.Dir); err != nil {
		return err
	}
	if r.password == "" {
		r.password = newPassword()
		if err := keepPassword(r.options.Dir, r.password); err != nil {
			return err
		}
	}
	if err := writePrivate(r.settingsFile(), "requirepass "+r.password+"\n"); err != nil {
		return fmt.Errorf("write Redis' settings: %w", err)
	}
	return nil
}

func (r *Redis) start(ctx context.Context) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, startTimeout)
		defer cancel()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	log, err := os.OpenFile(r.LogFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open Redis' log: %w", err)
	}
	defer log.Close()
	before, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("open Redis' log: %w", err)
	}
	appendOnly := "no"
	if r.options.AppendOnly {
		appendOnly = "yes"
	}
	server := command{
		name: "Redis", path: r.options.Binary, dir: r.options.Dir, output: log, onDeath: syscall.SIGTERM,
		args: []string{
			r.settingsFile(), "--bind", "127.0.0.1", "--port", strconv.Itoa(r.port), "--dir", r.options.Dir,
			"--databases", strconv.Itoa(r.options.Databases), "--daemonize", "no",
			"--save", "", "--appendonly", appendOnly,
		},
	}
	process, err := server.start()
	if err != nil {
		return err
	}
	if err := process.waitReady(ctx, func(ctx context.Context) error { return r.ready(ctx, process.PID) }); err != nil {
		_ = process.kill()
		return fmt.Errorf("%w\nend of %s:\n%s", err, r.LogFile(), said(r.LogFile(), before))
	}
	r.process = process
	return nil
}

// ready asks for the server's process id, which tells our server from one that
// happens to answer on the port. While it loads its data it answers LOADING.
func (r *Redis) ready(ctx context.Context, pid int) error {
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp4", address(r.port))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "AUTH "+r.password+"\r\nINFO server\r\n"); err != nil {
		return err
	}
	reply := bufio.NewReader(conn)
	let, err := reply.ReadString('\n')
	if err != nil {
		return err
	}
	if let = strings.TrimSpace(let); let != "+OK" {
		return errors.New(let)
	}
	head, err := reply.ReadString('\n')
	if err != nil {
		return err
	}
	size, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(head, "$")))
	if err != nil {
		return errors.New(strings.TrimSpace(head))
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(reply, body); err != nil {
		return err
	}
	if !strings.Contains(string(body), fmt.Sprintf("process_id:%d\r\n", pid)) {
		return fmt.Errorf("another Redis answers on %s", address(r.port))
	}
	return ping(conn, reply)
}

// ping succeeds once the data is loaded: INFO answers earlier than that.
func ping(conn net.Conn, reply *bufio.Reader) error {
	if _, err := io.WriteString(conn, "PING\r\n"); err != nil {
		return err
	}
	if _, err := reply.ReadString('\n'); err != nil { // the end of the previous answer
		return err
	}
	answer, err := reply.ReadString('\n')
	if err != nil {
		return err
	}
	if answer = strings.TrimSpace(answer); answer != "+PONG" {
		return errors.New(answer)
	}
	return nil
}
