// Command phases shows the life of a task from its registration to its events:
// phases.rb, on servers of its own, with a worker and a Sidekiq. Run it in the
// root of the repository:
//
//	go run ./examples/phases
package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/taskerhq/tasker/devstack"
	"github.com/taskerhq/tasker/migrations"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/worker"
)

// within is the longest that a run may take.
const within = 2 * time.Minute

func main() {
	ctx, stop := devstack.Told()
	defer stop()
	if err := onServers(ctx, "examples/phases", os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "phases:", err)
		os.Exit(1)
	}
}

// onServers runs the example on a new Postgres and a new Redis, which are gone
// afterwards.
func onServers(ctx context.Context, folder string, out io.Writer) (err error) {
	dir, remove, err := devstack.WorkDir("")
	if err != nil {
		return err
	}
	defer remove()
	end := context.WithoutCancel(ctx)
	postgres, err := devstack.StartPostgres(ctx, devstack.PostgresOptions{Dir: filepath.Join(dir, "postgres")})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, postgres.Stop(end)) }()
	redis, err := devstack.StartRedis(ctx, devstack.RedisOptions{Dir: filepath.Join(dir, "redis")})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, redis.Stop(end)) }()
	if err := postgres.CreateDatabase(ctx, "travel"); err != nil {
		return err
	}
	if err := migrate(ctx, postgres.URL("travel")); err != nil {
		return err
	}
	return run(ctx, folder, postgres.URL("travel"), redis.URL(0), out)
}

// migrate is what `tasker migrate up` does.
func migrate(ctx context.Context, url string) error {
	pool, err := store.Open(ctx, url, "phases", 1)
	if err != nil {
		return err
	}
	defer pool.Close()
	return migrations.Up(ctx, pool)
}

// run runs the worker here, Sidekiq as a process, and phases.rb to its end.
func run(ctx context.Context, folder, databaseURL, redisURL string, out io.Writer) error {
	folder, err := filepath.Abs(folder)
	if err != nil {
		return fmt.Errorf("find the example: %w", err)
	}
	gem := filepath.Join(folder, "..", "..", "ruby_bridge", "lib")
	env := append(os.Environ(), "DATABASE_URL="+databaseURL, "TASKER_DATABASE_URL="+databaseURL, "REDIS_URL="+redisURL, "RUBYLIB="+gem)
	ctx, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("it takes longer than %s", within))
	defer cancel()
	working, stop := context.WithCancel(ctx) // until the transcript is complete
	defer stop()
	group, working := errgroup.WithContext(working)
	started := make(chan struct{})
	group.Go(func() error {
		return worker.Run(working, worker.Config{
			DatabaseURL: databaseURL, RedisURL: redisURL,
			Live:    worker.Live{Templates: filepath.Join(folder, "templates")},
			Logger:  slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
			Started: func(int64) { close(started) }, // the template is registered
		})
	})
	group.Go(func() error {
		return process(working, env, nil, "sidekiq", "-e", "production", "-c", "5", "-r", filepath.Join(folder, "handlers.rb"))
	})
	group.Go(func() error {
		defer stop()
		select {
		case <-started:
		case <-working.Done():
			return nil
		}
		return process(working, env, out, "ruby", filepath.Join(folder, "phases.rb"))
	})
	err = group.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// process runs a program to its end, or until the work is over: that is a
// SIGTERM, and no error. What it says on the way is shown when it fails.
func process(working context.Context, env []string, out io.Writer, name string, args ...string) error {
	var log bytes.Buffer
	cmd := exec.CommandContext(working, name, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = env, cmp.Or[io.Writer](out, &log), &log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	if err := cmd.Run(); err != nil && working.Err() == nil {
		return fmt.Errorf("%s: %w\n%s", name, err, log.Bytes())
	}
	return nil
}
