// Package stage starts what a benchmark runs on: Postgres with fsync and
// synchronous_commit on, Redis, the tasker worker and Sidekiq, each a process
// of its own, and says how much CPU each has used.
package stage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/taskerhq/tasker/devstack"
	"github.com/taskerhq/tasker/migrations"
	"github.com/taskerhq/tasker/sidekiq"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/template"
)

// Stage is what has been started so far.
type Stage struct {
	Pool   *pgxpool.Pool
	Redis  *redis.Client
	Dir    string   // for files of the benchmark; removed by Close
	Env    []string // of the processes that are started
	Tasker string   // the program that Worker has built

	postgres *devstack.Postgres
	pids     map[string]int
	closers  []func() error
}

// Open starts Postgres, with settings such as "track_commit_timestamp = on", and
// Redis, and migrates the database "bench". When it fails, it leaves nothing
// running.
func Open(ctx context.Context, settings ...string) (_ *Stage, err error) {
	s := &Stage{pids: map[string]int{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	dir, cleanup, err := devstack.WorkDir("")
	if err != nil {
		return nil, err
	}
	s.Dir = dir
	s.closers = append(s.closers, func() error { cleanup(); return nil })
	end := context.WithoutCancel(ctx)
	if s.postgres, err = devstack.StartPostgres(ctx, devstack.PostgresOptions{Dir: filepath.Join(dir, "postgres"), Fsync: true}); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, func() error { return s.postgres.Stop(end) })
	server, err := devstack.StartRedis(ctx, devstack.RedisOptions{Dir: filepath.Join(dir, "redis")})
	if err != nil {
		return nil, err
	}
	s.closers = append(s.closers, func() error { return server.Stop(end) })
	if err := s.postgres.CreateDatabase(ctx, "bench"); err != nil {
		return nil, err
	}
	if len(settings) > 0 {
		if err := s.set(ctx, settings); err != nil {
			return nil, err
		}
	}
	if s.Pool, err = store.Open(ctx, s.DatabaseURL(), "bench", 4); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, func() error { s.Pool.Close(); return nil })
	if err := migrations.Up(ctx, s.Pool); err != nil {
		return nil, err
	}
	if s.Redis, err = sidekiq.Open(server.URL(0)); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, s.Redis.Close)
	bridge, err := filepath.Abs("ruby_bridge/lib")
	if err != nil {
		return nil, err
	}
	s.Env = append(os.Environ(), "TASKER_DATABASE_URL="+s.DatabaseURL(), "TASKER_REDIS_URL="+server.URL(0), "REDIS_URL="+server.URL(0), "RUBYLIB="+bridge)
	return s, nil
}

// set changes settings that need a restart.
func (s *Stage) set(ctx context.Context, settings []string) error {
	conn, err := pgx.Connect(ctx, s.DatabaseURL())
	if err != nil {
		return err
	}
	for _, setting := range settings {
		if _, err = conn.Exec(ctx, `ALTER SYSTEM SET `+setting); err != nil {
			break
		}
	}
	if err = errors.Join(err, conn.Close(ctx)); err != nil {
		return err
	}
	return s.postgres.Restart(ctx)
}

// DatabaseURL is that of the database "bench".
func (s *Stage) DatabaseURL() string { return s.postgres.URL("bench") }

// Database creates one more database and returns its URL.
func (s *Stage) Database(ctx context.Context, name string) (url string, err error) {
	return s.postgres.URL(name), s.postgres.CreateDatabase(ctx, name)
}

// Watch counts the CPU time of a process that somebody else has started.
func (s *Stage) Watch(name string, pid int) { s.pids[name] = pid }

// Close stops all, the last first.
func (s *Stage) Close() error {
	var err error
	for i := len(s.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, s.closers[i]())
	}
	s.closers = nil
	return err
}

// FourSteps is the template bench/four: four steps in a row that do nothing.
const FourSteps = `
name: four
namespace_name: bench
step_templates:
  - {name: a, handler: tasker.echo}
  - {name: b, handler: tasker.echo, depends_on_step: a}
  - {name: c, handler: tasker.echo, depends_on_step: b}
  - {name: d, handler: tasker.echo, depends_on_step: c}
`

// Register registers a template.
func (s *Stage) Register(ctx context.Context, name, yaml string) error {
	t, err := template.Parse(name, []byte(yaml), template.Options{})
	if err != nil {
		return err
	}
	_, err = store.New(s.Pool).RegisterTemplate(ctx, t, template.Checksum(t))
	return err
}

// Start starts a process that Close ends.
func (s *Stage) Start(ctx context.Context, name string, command ...string) (*exec.Cmd, error) {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env, cmd.Stderr = s.Env, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	s.pids[name] = cmd.Process.Pid
	s.closers = append(s.closers, func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended: Wait says how
		if err := cmd.Wait(); err != nil && ctx.Err() == nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	})
	return cmd, nil
}

// Worker builds tasker and starts a worker.
func (s *Stage) Worker(ctx context.Context, flags ...string) error {
	s.Tasker = filepath.Join(s.Dir, "tasker")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", s.Tasker, "./cmd/tasker").CombinedOutput(); err != nil {
		return fmt.Errorf("build tasker: %w\n%s", err, out)
	}
	_, err := s.Start(ctx, "worker", append([]string{s.Tasker, "worker", "--log-level", "warn"}, flags...)...)
	return err
}

// Sidekiq starts a Sidekiq process that loads the file.
func (s *Stage) Sidekiq(ctx context.Context, boot string, concurrency int, queues ...string) error {
	command := []string{"sidekiq", "-r", boot, "-c", strconv.Itoa(concurrency)}
	for _, q := range queues {
		command = append(command, "-q", q)
	}
	_, err := s.Start(ctx, "sidekiq", command...)
	return err
}

// TrackFunctions makes Postgres count the calls of SQL functions.
func (s *Stage) TrackFunctions(ctx context.Context) error {
	if _, err := s.Pool.Exec(ctx, `ALTER SYSTEM SET track_functions = 'all'`); err != nil {
		return err
	}
	_, err := s.Pool.Exec(ctx, `SELECT pg_reload_conf()`)
	return err
}

// Function is how often a function was called, and the time spent in it alone.
type Function struct {
	Calls int
	Own   time.Duration
}

// Functions reads what is counted; nothing before TrackFunctions.
func (s *Stage) Functions(ctx context.Context) (map[string]Function, error) {
	rows, err := s.Pool.Query(ctx, `SELECT funcname, calls, self_time FROM pg_stat_user_functions`)
	if err != nil {
		return nil, err
	}
	counted := map[string]Function{}
	var name string
	var calls int
	var own float64
	_, err = pgx.ForEachRow(rows, []any{&name, &calls, &own}, func() error {
		counted[name] = Function{calls, time.Duration(own * float64(time.Millisecond))}
		return nil
	})
	return counted, err
}

// serverPID is that of the Postgres server.
func (s *Stage) serverPID() int {
	text, err := os.ReadFile(filepath.Join(s.Dir, "postgres", "data", "postmaster.pid"))
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.SplitN(string(text), "\n", 2)[0]) // 0: not known
	return pid
}

// CPU is the time that each kind of process has used so far. Postgres is the
// sum of its processes.
func (s *Stage) CPU() map[string]time.Duration {
	used := map[string]time.Duration{}
	server := s.serverPID()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return used
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		parent, own, reaped := usage(pid)
		switch {
		case server != 0 && pid == server:
			used["postgres"] += own + reaped
		case server != 0 && parent == server:
			used["postgres"] += own
		}
		for name, known := range s.pids {
			if pid == known {
				used[name] += own
			}
		}
	}
	return used
}

// Memory is the resident memory of a process, in bytes.
func (s *Stage) Memory(name string) int64 { return Resident(s.pids[name]) }

// Resident is the resident memory of a process, in bytes; 0: not known.
func Resident(pid int) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	fields := strings.Fields(string(text))
	if err != nil || len(fields) < 2 {
		return 0 // it has ended
	}
	pages, _ := strconv.ParseInt(fields[1], 10, 64) // 0: not known
	return pages * int64(os.Getpagesize())
}

// usage reads /proc/PID/stat: the parent, its own CPU time and that of the
// children it has waited for.
func usage(pid int) (parent int, own, reaped time.Duration) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, 0
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 15 {
		return 0, 0, 0
	}
	number := func(i int) int { n, _ := strconv.Atoi(fields[i]); return n }
	const tick = time.Second / 100 // of Linux, whatever the kernel's own
	return number(1), time.Duration(number(11)+number(12)) * tick, time.Duration(number(13)+number(14)) * tick
}
