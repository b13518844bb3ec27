package devstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// startTimeout is how long a server may take to answer when the caller's
// context has no deadline: crash recovery of a large folder included.
const startTimeout = 60 * time.Second

// PostgresOptions says how to start Postgres. Only Dir is required.
type PostgresOptions struct {
	Dir            string    // keeps data/, password and postgres.log; created when missing, reused when it holds a cluster
	Port           int       // 0: one that is free
	BinDir         string    // folder of initdb and postgres; "": FindPostgres
	Fsync          bool      // false: a crash of the machine (not of the server) loses data; for tests
	MaxConnections int       // 0: 200
	Env            []string  // more environment of the server
	Log            io.Writer // what is being done, a line each; nil: nothing. The server's own log is postgres.log
}

// Postgres is a private server. Its methods may be called from any goroutine.
type Postgres struct {
	options  PostgresOptions
	bin      string
	port     int
	password string
	runAs    *account

	mu      sync.Mutex // held during start and stop
	process *process
}

// StartPostgres starts a server, creating its cluster if Dir has none, and
// returns when it takes connections. The server lives until Stop, not until
// ctx ends.
func StartPostgres(ctx context.Context, options PostgresOptions) (*Postgres, error) {
	if options.Log == nil {
		options.Log = io.Discard
	}
	if options.MaxConnections == 0 {
		options.MaxConnections = 200
	}
	dir, err := filepath.Abs(options.Dir)
	if err != nil {
		return nil, fmt.Errorf("start Postgres: find folder %s: %w", options.Dir, err)
	}
	options.Dir = dir
	p := &Postgres{options: options, bin: options.BinDir}
	if p.bin == "" {
		if p.bin, err = FindPostgres(); err != nil {
			return nil, err
		}
	}
	if p.runAs, err = postgresAccount(); err != nil {
		return nil, err
	}
	if err := p.initialise(ctx); err != nil {
		return nil, err
	}
	if err := p.protect(ctx); err != nil {
		return nil, err
	}
	err = withPort(options.Port, "Postgres", func(port int) error {
		p.port = port
		return p.start(ctx)
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

func (p *Postgres) data() string { return filepath.Join(p.options.Dir, "data") }

// LogFile is the path of the server's log.
func (p *Postgres) LogFile() string { return filepath.Join(p.options.Dir, "postgres.log") }

// Port is the TCP port on 127.0.0.1.
func (p *Postgres) Port() int { return p.port }

// PID is the process id of the postmaster; 0 while the server isn't running.
func (p *Postgres) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.process == nil || !p.process.running() {
		return 0
	}
	return p.process.PID
}

// Done is closed when the server that is running now has exited, for whatever
// reason.
func (p *Postgres) Done() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.process.exited
}

// URL is the connection string of a database, for the superuser postgres, with
// the password.
func (p *Postgres) URL(database string) string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword("postgres", p.password), Host: address(p.port), Path: "/" + database, RawQuery: "sslmode=disable"}
	return u.String()
}

// CreateDatabase creates a database unless it exists.
func (p *Postgres) CreateDatabase(ctx context.Context, name string) error {
	conn, err := pgx.Connect(ctx, p.URL("postgres"))
	if err != nil {
		return fmt.Errorf("create database %s: %w", name, err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var exists bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name).Scan(&exists); err != nil {
		return fmt.Errorf("create database %s: %w", name, err)
	}
	if exists {
		return nil
	}
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()); err != nil {
		return fmt.Errorf("create database %s: %w", name, err)
	}
	return nil
}

// Stop ends the server in good order (fast shutdown: sessions are cut off,
// then a checkpoint is written). When ctx ends first, the server is killed. A
// stopped server can be started again with Restart.
func (p *Postgres) Stop(ctx context.Context) error {
	return p.end(ctx, syscall.SIGINT)
}

// StopImmediate ends the server as a crash would, but in an orderly manner:
// no checkpoint; the next start recovers from the log.
func (p *Postgres) StopImmediate(ctx context.Context) error {
	return p.end(ctx, syscall.SIGQUIT)
}

func (p *Postgres) end(ctx context.Context, sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.process.stop(ctx, sig)
}

// Kill ends the postmaster with SIGKILL. The sessions notice within
// milliseconds and end as well.
func (p *Postgres) Kill() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.process.kill()
}

// Restart stops the server if it runs, and starts it on the same port.
func (p *Postgres) Restart(ctx context.Context) error {
	if err := p.Stop(ctx); err != nil {
		return err
	}
	return withPort(p.port, "Postgres", func(int) error { return p.start(ctx) })
}

// initialise creates the cluster unless there is one. It is built beside its
// place and moved there when complete, so that an interrupted first start
// leaves nothing half-made behind.
func (p *Postgres) initialise(ctx context.Context) error {
	if err := os.MkdirAll(p.options.Dir, 0o755); err != nil {
		return fmt.Errorf("create Postgres' folder: %w", err)
	}
	if obstacle := p.runAs.obstacle(ctx, p.options.Dir); obstacle != "" {
		return fmt.Errorf("user %s, which Postgres runs as because this process is root, can't enter %s: "+
			"choose a folder that every user can enter, or open it: chmod o+x %s", p.runAs.name, obstacle, obstacle)
	}
	if _, err := os.Stat(filepath.Join(p.data(), "PG_VERSION")); err == nil {
		return p.sameVersion()
	}
	fmt.Fprintf(p.options.Log, "creating a Postgres cluster in %s\n", p.data())
	incomplete := p.data() + ".incomplete"
	if err := os.RemoveAll(incomplete); err != nil {
		return fmt.Errorf("remove what an interrupted start left: %w", err)
	}
	if err := os.Mkdir(incomplete, 0o700); err != nil {
		return fmt.Errorf("create Postgres' data folder: %w", err)
	}
	if err := p.runAs.own(incomplete); err != nil {
		return fmt.Errorf("give Postgres' data folder to user %s: %w", p.runAs.name, err)
	}
	initdb := command{
		name: "initdb", path: filepath.Join(p.bin, "initdb"), dir: incomplete, runAs: p.runAs, onDeath: syscall.SIGKILL,
		// C: the same order of text on every machine, and the fastest.
		// reject: protect lets in who knows the password. no-sync: a folder
		// that a crash of the machine spoils right here is made again.
		args: []string{
			"--pgdata=" + incomplete, "--username=postgres", "--encoding=UTF8", "--locale=C",
			"--auth=reject", "--no-sync",
		},
	}
	if err := initdb.run(ctx); err != nil {
		return err
	}
	if err := forgetPassword(p.options.Dir); err != nil { // of a cluster that was removed
		return err
	}
	if err := os.Rename(incomplete, p.data()); err != nil {
		return fmt.Errorf("move the new Postgres cluster to its place: %w", err)
	}
	return nil
}

// protect gives the superuser a password, and lets in only who shows it. A cluster that was
// created without one gets one too. The password is kept when all is done.
func (p *Postgres) protect(ctx context.Context) (err error) {
	if p.password, err = readPassword(p.options.Dir); err != nil || p.password != "" {
		return err
	}
	p.password = newPassword()
	// A server of one session, without a socket. The statement comes through a pipe: every account
	// of the machine can read arguments.
	alone := command{
		name: "Postgres in single-user mode", path: filepath.Join(p.bin, "postgres"), dir: p.data(), runAs: p.runAs, onDeath: syscall.SIGKILL,
		args:  []string{"--single", "-D", p.data(), "-c", "password_encryption=scram-sha-256", "-c", "exit_on_error=on", "postgres"},
		input: strings.NewReader("ALTER ROLE postgres PASSWORD '" + p.password + "'\n"),
	}
	if err := alone.run(ctx); err != nil {
		return fmt.Errorf("set the password of the cluster in %s: %w", p.data(), err)
	}
	const rules = "# Written by tasker: the password of 127.0.0.1 is in the file password beside this folder.\n" +
		"host all all 127.0.0.1/32 scram-sha-256\nhost replication all 127.0.0.1/32 scram-sha-256\n"
	if err := os.WriteFile(filepath.Join(p.data(), "pg_hba.conf"), []byte(rules), 0o600); err != nil {
		return fmt.Errorf("write Postgres' rules for connections: %w", err)
	}
	return keepPassword(p.options.Dir, p.password)
}

// sameVersion refuses a folder written by another major version, whose error
// in the log wouldn't say what to do.
func (p *Postgres) sameVersion() error {
	content, err := os.ReadFile(filepath.Join(p.data(), "PG_VERSION"))
	if err != nil {
		return fmt.Errorf("read the version of the Postgres cluster: %w", err)
	}
	cluster, err := strconv.Atoi(strings.TrimSpace(string(content)))
	programs := majorVersion(p.bin)
	if err != nil || programs == 0 || cluster == programs {
		return nil //nolint:nilerr // can't tell: the server will
	}
	return fmt.Errorf("%s was written by Postgres %d, the programs in %s are version %d: "+
		"install Postgres %d, or remove the folder to begin anew", p.data(), cluster, p.bin, programs, cluster)
}

func (p *Postgres) settings() []string {
	settings := []string{
		"listen_addresses=127.0.0.1",
		"unix_socket_directories=",
		"max_connections=" + strconv.Itoa(p.options.MaxConnections),
		"shared_buffers=128MB",
		"logging_collector=off",
		"log_line_prefix=%m [%p] %d ",
	}
	if !p.options.Fsync {
		settings = append(settings, "fsync=off", "full_page_writes=off")
	}
	return settings
}

func (p *Postgres) start(ctx context.Context) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, startTimeout)
		defer cancel()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		err := p.startOnce(ctx)
		if !errors.Is(err, errStillInUse) || ctx.Err() != nil {
			return err
		}
		// The sessions of a killed postmaster are about to notice.
		time.Sleep(50 * time.Millisecond)
	}
}

var errStillInUse = errors.New("processes of the previous server are still running")

func (p *Postgres) startOnce(ctx context.Context) error {
	log, err := os.OpenFile(p.LogFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open Postgres' log: %w", err)
	}
	defer log.Close()
	before, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("open Postgres' log: %w", err)
	}
	args := []string{"-D", p.data(), "-p", strconv.Itoa(p.port)}
	for _, setting := range p.settings() {
		args = append(args, "-c", setting)
	}
	server := command{
		name: "Postgres", path: filepath.Join(p.bin, "postgres"), args: args,
		dir: p.data(), env: p.options.Env, output: log, runAs: p.runAs, onDeath: syscall.SIGINT,
	}
	process, err := server.start()
	if err != nil {
		return err
	}
	if err := process.waitReady(ctx, func(ctx context.Context) error { return p.ready(ctx, process.PID) }); err != nil {
		_ = process.kill()
		said := said(p.LogFile(), before)
		if strings.Contains(said, "pre-existing shared memory block") {
			return errStillInUse
		}
		return fmt.Errorf("%w\nend of %s:\n%s", err, p.LogFile(), said)
	}
	p.process = process
	fmt.Fprintf(p.options.Log, "Postgres runs at %s\n", address(p.port))
	return nil
}

// ready first reads the file in which the postmaster says what it is at: it
// tells our server from one that happens to answer on the port.
func (p *Postgres) ready(ctx context.Context, pid int) error {
	content, err := os.ReadFile(filepath.Join(p.data(), "postmaster.pid"))
	if err != nil {
		return err
	}
	lines := strings.Split(string(content), "\n")
	const pidLine, statusLine = 0, 7
	if len(lines) <= statusLine || lines[pidLine] != strconv.Itoa(pid) {
		return errors.New("starting")
	}
	if status := strings.TrimSpace(lines[statusLine]); status != "ready" {
		return errors.New(status)
	}
	conn, err := pgx.Connect(ctx, p.URL("postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	return conn.Ping(ctx)
}
