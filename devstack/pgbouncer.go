package devstack

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// FindPgBouncer returns the path of the program.
func FindPgBouncer() (string, error) {
	for _, name := range []string{"pgbouncer", "/usr/sbin/pgbouncer"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("PgBouncer is %w (looked for pgbouncer in PATH and /usr/sbin): apt-get install pgbouncer", ErrNotInstalled)
}

// PgBouncer is a private connection pooler in transaction mode.
type PgBouncer struct {
	process *process
	server  *url.URL
	port    int
}

// StartPgBouncer starts a pooler in front of the server that the URL is of,
// with so many connections to it, and returns when it passes statements on. dir
// keeps its settings and its log.
func StartPgBouncer(ctx context.Context, dir, server string, connections int) (*PgBouncer, error) {
	program, err := FindPgBouncer()
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(server)
	if err != nil {
		return nil, fmt.Errorf("start PgBouncer: %w", err)
	}
	runAs, err := postgresAccount() // it refuses to run as root, as Postgres does
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("create PgBouncer's folder: %w", err)
	}
	b := &PgBouncer{server: u}
	return b, withPort(0, "PgBouncer", func(port int) error {
		b.port = port
		return b.start(ctx, command{name: "PgBouncer", path: program, dir: dir, runAs: runAs, onDeath: syscall.SIGKILL}, connections)
	})
}

func (b *PgBouncer) start(ctx context.Context, program command, connections int) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, startTimeout)
		defer cancel()
	}
	login := "user=" + b.server.User.Username()
	password, set := b.server.User.Password()
	if set {
		login += " password=" + password
	}
	users := filepath.Join(program.dir, "users.txt")
	if err := writePrivate(users, fmt.Sprintf("%q %q\n", b.server.User.Username(), password)); err != nil {
		return fmt.Errorf("write PgBouncer's users: %w", err)
	}
	settings := fmt.Sprintf(`[databases]
* = host=%s port=%s %s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = scram-sha-256
auth_file = %s
pool_mode = transaction
default_pool_size = %d
max_client_conn = 500
`, b.server.Hostname(), b.server.Port(), login, b.port, users, connections)
	file, logged := filepath.Join(program.dir, "pgbouncer.ini"), filepath.Join(program.dir, "pgbouncer.log")
	if err := writePrivate(file, settings); err != nil {
		return fmt.Errorf("write PgBouncer's settings: %w", err)
	}
	if err := program.runAs.own(program.dir); err != nil {
		return fmt.Errorf("give PgBouncer its folder: %w", err)
	}
	log, err := os.OpenFile(logged, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("open PgBouncer's log: %w", err)
	}
	defer log.Close()
	program.output, program.args = log, []string{file}
	if b.process, err = program.start(); err != nil {
		return err
	}
	err = b.process.waitReady(ctx, func(ctx context.Context) error {
		conn, err := pgx.Connect(ctx, b.URL("postgres"))
		if err != nil {
			return err
		}
		return errors.Join(conn.Ping(ctx), conn.Close(ctx))
	})
	if err != nil {
		_ = b.process.kill()
		return fmt.Errorf("%w\nend of %s:\n%s", err, logged, said(logged, 0))
	}
	return nil
}

// URL is the address of a database behind the pooler.
func (b *PgBouncer) URL(database string) string {
	u := *b.server
	u.Host, u.Path = "127.0.0.1:"+strconv.Itoa(b.port), "/"+database
	return u.String()
}

// Stop ends the pooler; connections through it break.
func (b *PgBouncer) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return b.process.stop(ctx, syscall.SIGTERM)
}
