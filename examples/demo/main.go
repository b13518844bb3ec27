// Command demo runs the example application examples/orders as it would run in
// a team: Rails stores orders and inserts their tasks, a worker orchestrates
// the steps, Sidekiq runs them. Then it holds what is in the databases against
// what must be there.
//
// It trusts nothing of what it started before: Postgres and Redis are new, on
// free ports, with their data in a folder of this run, and all of it is gone
// at the end, however the end comes. Only the logs of a run that failed stay.
//
// Run it in the root of the repository, with bin/tasker built: make demo.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/taskerhq/tasker/devstack"
)

const (
	startWithin  = 60 * time.Second // of the servers, the worker, Sidekiq: each
	finishWithin = 60 * time.Second // of all tasks
	stopWithin   = 30 * time.Second // of each process and server: longer than Sidekiq's own -t
)

func main() {
	trace := flag.String("trace", "", "a file for the trace of one order, from Rails to Sidekiq and back")
	flag.Parse()
	ctx, stop := devstack.Told()
	context.AfterFunc(ctx, stop) // a second Ctrl-C doesn't wait for the cleaning up
	os.Exit(run(ctx, newScreen(os.Stdout), *trace))
}

func run(ctx context.Context, s *screen, trace string) int {
	began := time.Now()
	d, err := newDemo(s)
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		return 1
	}
	d.trace = trace
	s.title("tasker demo", "Rails places orders, tasker orchestrates their steps, Sidekiq runs them")
	err = errors.Join(d.play(ctx), d.close())
	switch {
	case ctx.Err() != nil:
		s.line("")
		s.line("  stopped; servers and data are gone")
		d.removeLogs()
		return 130
	case err != nil:
		s.line("")
		s.failure(err)
		d.showLogs()
		return 1
	}
	d.removeLogs()
	s.line("")
	s.success(fmt.Sprintf("all checks hold; %s in total", seconds(time.Since(began))))
	return 0
}

// demo is one run.
type demo struct {
	screen *screen
	root   string // of the repository
	app    string // the Rails app
	dir    string // of this run
	logs   string
	env    []string // of the children
	trace  string   // where the trace of an order goes; empty: nowhere
	traces *collection

	cleanup  []func() error // last one first
	postgres *devstack.Postgres
	redis    *devstack.Redis
	worker   *child
	sidekiq  *child
	pool     *pgxpool.Pool
	client   *redis.Client
}

func newDemo(s *screen) (*demo, error) {
	root, err := os.Getwd()
	if err != nil {
		return nil, fmt.Errorf("find the working directory: %w", err)
	}
	d := &demo{screen: s, root: root, app: filepath.Join(root, "examples", "orders")}
	for _, needed := range []string{d.app, d.tasker()} {
		if _, err := os.Stat(needed); err != nil {
			return nil, fmt.Errorf("%w: run it in the root of the repository, after make build", err)
		}
	}
	runs := filepath.Join(root, "tmp", "demo")
	removeDead(runs)
	d.dir = filepath.Join(runs, strconv.Itoa(os.Getpid()))
	d.logs = filepath.Join(d.dir, "log")
	if err := os.MkdirAll(d.logs, 0o755); err != nil {
		return nil, fmt.Errorf("make a folder for the logs: %w", err)
	}
	return d, nil
}

// removeDead removes what runs left behind that failed, or were killed.
func removeDead(runs string) {
	entries, err := os.ReadDir(runs)
	if err != nil {
		return // there are none
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			_ = os.RemoveAll(filepath.Join(runs, e.Name())) // what stays is in nobody's way
		}
	}
}

func (d *demo) tasker() string { return filepath.Join(d.root, "bin", "tasker") }

func (d *demo) templates() string { return filepath.Join(d.app, "config", "tasker", "tasks") }

func (d *demo) play(ctx context.Context) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	stages := []struct {
		name string
		do   func(context.Context) error
	}{
		{"Postgres and Redis, new and private", d.startServers},
		{"schemas: tasker migrate up, and bin/setup_db for the shop's tables", d.migrate},
		{"tasker worker, and sidekiq with the Rails app", func(ctx context.Context) error { return d.startProcesses(ctx, fail) }},
	}
	for _, stage := range stages {
		if err := d.screen.stage(ctx, stage.name, stage.do); err != nil {
			return err
		}
	}
	orders, err := d.fulfil(ctx)
	if err != nil {
		if ctx.Err() == nil { // the servers are there: show how far it got
			err = errors.Join(err, d.printTasks(ctx))
		}
		return err
	}
	if err := d.printTasks(ctx); err != nil {
		return err
	}
	d.screen.heading("Checks")
	c := &checks{screen: d.screen, pool: d.pool, redis: d.client}
	if err := c.outcome(ctx, orders); err != nil {
		return err
	}
	c.stops("tasker worker", d.worker)
	c.stops("sidekiq", d.sidekiq)
	if d.trace != "" {
		if err := d.writeTrace(orders); err != nil {
			return err
		}
	}
	return c.verdict()
}

func (d *demo) startServers(ctx context.Context) error {
	data, remove, err := devstack.WorkDir(filepath.Join(d.dir, "data"))
	if err != nil {
		return err
	}
	d.cleanup = append(d.cleanup, func() error { remove(); return os.RemoveAll(filepath.Join(d.dir, "data")) })
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	var g errgroup.Group
	g.Go(func() (err error) {
		d.postgres, err = devstack.StartPostgres(ctx, devstack.PostgresOptions{Dir: filepath.Join(data, "postgres"), Fsync: true})
		if err != nil {
			return err
		}
		return d.postgres.CreateDatabase(ctx, "shop")
	})
	g.Go(func() (err error) {
		d.redis, err = devstack.StartRedis(ctx, devstack.RedisOptions{Dir: filepath.Join(data, "redis")})
		return err
	})
	err = g.Wait()
	if d.redis != nil {
		d.cleanup = append(d.cleanup, d.stopServer(d.redis.Stop, d.redis.LogFile()))
	}
	if d.postgres != nil {
		d.cleanup = append(d.cleanup, d.stopServer(d.postgres.Stop, d.postgres.LogFile()))
	}
	if err != nil {
		return err
	}
	d.env = environment(d.postgres.URL("shop"), d.redis.URL(0))
	if d.trace != "" {
		if err := d.startTracing(); err != nil {
			return err
		}
	}
	if d.pool, err = pgxpool.New(ctx, d.postgres.URL("shop")); err != nil {
		return fmt.Errorf("connect to Postgres: %w", err)
	}
	options, err := redis.ParseURL(d.redis.URL(0))
	if err != nil {
		return fmt.Errorf("address of Redis: %w", err)
	}
	d.client = redis.NewClient(options)
	d.cleanup = append(d.cleanup, func() error { d.pool.Close(); return d.client.Close() })
	return nil
}

// stopServer stops a server and keeps its log, which is about to go with its data.
func (d *demo) stopServer(stop func(context.Context) error, log string) func() error {
	return func() error {
		ctx, cancel := context.WithTimeout(context.Background(), stopWithin)
		defer cancel()
		err := stop(ctx)
		content, readErr := os.ReadFile(log)
		if readErr == nil {
			readErr = os.WriteFile(filepath.Join(d.logs, filepath.Base(log)), content, 0o644)
		}
		return errors.Join(err, readErr)
	}
}

// environment is ours, without what would lead the children to servers or
// settings of the developer's own.
func environment(databaseURL, redisURL string) []string {
	own := []string{
		"DATABASE_URL=" + databaseURL, "REDIS_URL=" + redisURL, "RAILS_ENV=production",
	}
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		switch {
		case strings.HasPrefix(name, "TASKER_"), strings.HasPrefix(name, "PG"), strings.HasPrefix(name, "BUNDLE_"), strings.HasPrefix(name, "OTEL_"):
		case name == "DATABASE_URL", name == "REDIS_URL", name == "RAILS_ENV", name == "APP_ENV", name == "RACK_ENV", name == "RUBYOPT", name == "RUBYLIB":
		case name == "REDIS_PROVIDER", name == "RAILS_MAX_THREADS", name == "NOTIFY_SOCKET":
		default:
			own = append(own, entry)
		}
	}
	return own
}

func (d *demo) migrate(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.tool(ctx, "migrate", nil, d.tasker(), "migrate", "up") })
	g.Go(func() error { return d.tool(ctx, "setup_db", nil, filepath.Join(d.app, "bin", "setup_db")) })
	return g.Wait()
}

// tool runs a program to its end. Its output goes to its log, and standard
// output to the writer, if there is one.
func (d *demo) tool(ctx context.Context, name string, stdout io.Writer, program string, args ...string) error {
	c, err := d.start(name, stdout, program, args...)
	if err != nil {
		return err
	}
	select {
	case <-c.Exited():
	case <-ctx.Done():
		_ = c.stop(0) // the reason to stop is the error
		return context.Cause(ctx)
	}
	if c.Err() != nil {
		return fmt.Errorf("%s: %w", strings.Join(append([]string{d.relative(program)}, args...), " "), c.Err())
	}
	return nil
}

// startProcesses starts the two processes that work, and waits until both have
// registered. When one of them ends by itself, the run has failed.
func (d *demo) startProcesses(ctx context.Context, fail context.CancelCauseFunc) error {
	sidekiq := []string{"sidekiq"}
	if _, err := os.Stat(filepath.Join(d.app, "Gemfile.lock")); err == nil {
		sidekiq = []string{"bundle", "exec", "sidekiq"}
	}
	for _, p := range []struct {
		name    string
		child   **child
		command []string
	}{
		{"sidekiq", &d.sidekiq, sidekiq},
		{"worker", &d.worker, []string{d.tasker(), "worker", "--templates", d.templates()}},
	} {
		c, err := d.start(p.name, nil, p.command[0], p.command[1:]...)
		if err != nil {
			return err
		}
		*p.child = c
		d.cleanup = append(d.cleanup, func() error { return c.stop(stopWithin) })
		go func() {
			<-c.Exited()
			fail(fmt.Errorf("%s has ended by itself (%s)", c.name, c.status()))
		}()
	}

	ctx, cancel := context.WithTimeoutCause(ctx, startWithin, fmt.Errorf("the worker or Sidekiq did not register within %s", startWithin))
	defer cancel()
	for {
		var registered bool
		err := d.pool.QueryRow(ctx, `
			SELECT EXISTS (SELECT FROM tasker.workers WHERE state = 'alive')
			   AND EXISTS (SELECT FROM tasker.processes WHERE stopped_at IS NULL)`).Scan(&registered)
		if registered {
			return nil
		}
		if err = pause(ctx, err, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

// pause waits. It returns the reason when ctx has ended, else err.
func pause(ctx context.Context, err error, d time.Duration) error {
	if err == nil {
		select {
		case <-ctx.Done():
		case <-time.After(d):
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// close stops what is still running, and removes the data.
func (d *demo) close() error {
	var errs []error
	for i := len(d.cleanup) - 1; i >= 0; i-- {
		errs = append(errs, d.cleanup[i]())
	}
	return errors.Join(errs...)
}

func (d *demo) relative(path string) string {
	if short, err := filepath.Rel(d.root, path); err == nil && !strings.HasPrefix(short, "..") {
		return short
	}
	return path
}

func (d *demo) removeLogs() {
	_ = os.RemoveAll(d.dir)            // a log that stays does no harm
	_ = os.Remove(filepath.Dir(d.dir)) // when no other run needs it
	_ = os.Remove(filepath.Dir(filepath.Dir(d.dir)))
}

// showLogs prints the end of each log.
func (d *demo) showLogs() {
	const lines = 12
	files, _ := filepath.Glob(filepath.Join(d.logs, "*.log")) // the pattern is sound
	for _, file := range files {
		content, err := os.ReadFile(file)
		text := strings.TrimSpace(string(content))
		if err != nil || text == "" {
			continue
		}
		all := strings.Split(text, "\n")
		d.screen.heading("End of " + d.relative(file))
		for _, line := range all[max(0, len(all)-lines):] {
			d.screen.line("  " + line)
		}
	}
	d.screen.line("")
	d.screen.line("  the logs stay in " + d.relative(d.logs) + " until the next run")
}
