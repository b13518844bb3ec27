package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/taskerhq/tasker/devstack"
	"github.com/taskerhq/tasker/migrations"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/worker"
)

func (a *app) devCommand() *cobra.Command {
	var (
		dir                     string
		postgresPort, redisPort int
	)
	command := &cobra.Command{
		Use:   "dev",
		Short: "Run Postgres, Redis and a worker for development",
		Long: `Starts a private Postgres and Redis on loopback, migrates, registers the
templates, runs a worker, and prints the URLs for your app. Ctrl-C stops it all;
the data stays in the folder for the next time. Both servers have a random
password, which the URLs hold and only your account can read in the folder.`,
		Args: argsExactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, name := range []string{"database-url", "redis-url"} {
				if cmd.Flags().Changed(name) {
					return &usageError{fmt.Errorf("tasker dev starts servers of its own; for yours, --%s goes with tasker worker", name)}
				}
			}
			for name, port := range map[string]int{"postgres-port": postgresPort, "redis-port": redisPort} {
				if port < 0 || port > 65535 {
					return &usageError{fmt.Errorf("--%s is a port from 1 to 65535, not %d", name, port)}
				}
			}
			if environment := &a.settings.Templates.Environment; *environment == "" {
				*environment = "development"
			}
			c, err := workerConfig(a.settings)
			if err != nil {
				return err
			}
			return a.dev(cmd.Context(), dir, postgresPort, redisPort, c)
		},
	}
	flags := command.Flags()
	flags.StringVar(&dir, "dir", ".tasker", "folder for the data of Postgres and Redis")
	flags.IntVar(&postgresPort, "postgres-port", 0, "port for Postgres; 0: a free one")
	flags.IntVar(&redisPort, "redis-port", 0, "port for Redis; 0: a free one")
	a.settingFlags(flags, devSettings...)
	return command
}

func (a *app) dev(ctx context.Context, dir string, postgresPort, redisPort int, c worker.Config) (err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	dir, cleanup, err := devstack.WorkDir(dir)
	if err != nil {
		return err
	}
	defer cleanup()

	if c.Templates != "" {
		updates := make(chan worker.Live)
		c.Updates = updates
		go a.watchTemplates(ctx, c.Live, updates)
		if !a.readable(c.Live) { // the servers and the worker run without; corrected templates are taken up
			c.Templates = ""
		}
	}
	unlock, err := lockFolder(dir)
	if err != nil {
		return err
	}
	defer unlock()
	ports := lastPorts(dir)
	if postgresPort != 0 {
		ports.Postgres = postgresPort
	}
	if redisPort != 0 {
		ports.Redis = redisPort
	}

	// The servers outlive ctx: the worker hands its tasks back to them first.
	stopping := func() (context.Context, context.CancelFunc) {
		return context.WithTimeout(context.Background(), 20*time.Second)
	}
	fprintln(a.stderr, "starting Postgres …")
	start := func(port int) (*devstack.Postgres, error) {
		return devstack.StartPostgres(ctx, devstack.PostgresOptions{Dir: filepath.Join(dir, "postgres"), Port: port, Fsync: true})
	}
	postgres, err := start(ports.Postgres)
	if err != nil && postgresPort == 0 && ports.Postgres != 0 {
		postgres, err = start(0) // the port of the last time is taken
	}
	if err != nil {
		return err
	}
	defer func() {
		stop, cancel := stopping()
		defer cancel()
		err = errors.Join(err, postgres.Stop(stop))
	}()
	fprintln(a.stderr, "starting Redis …")
	startRedis := func(port int) (*devstack.Redis, error) {
		return devstack.StartRedis(ctx, devstack.RedisOptions{Dir: filepath.Join(dir, "redis"), Port: port})
	}
	redis, err := startRedis(ports.Redis)
	if err != nil && redisPort == 0 && ports.Redis != 0 {
		redis, err = startRedis(0)
	}
	if err != nil {
		return err
	}
	defer func() {
		stop, cancel := stopping()
		defer cancel()
		err = errors.Join(err, redis.Stop(stop))
	}()

	keepPorts(dir, devPorts{postgres.Port(), redis.Port()})

	if err := postgres.CreateDatabase(ctx, "tasker"); err != nil {
		return err
	}
	c.DatabaseURL, c.RedisURL, c.Logger = postgres.URL("tasker"), redis.URL(0), a.logger()
	if err := migrateDev(ctx, c.DatabaseURL); err != nil {
		return err
	}
	told := false
	c.Started = func(int64) {
		if told { // the worker has started anew
			return
		}
		told = true
		if a.output == "json" {
			_ = a.printJSON(map[string]string{"database_url": c.DatabaseURL, "redis_url": c.RedisURL}) // a closed pipe is the reader's wish
			return
		}
		fprintf(a.stdout, `
tasker runs. For your app, psql and Sidekiq:

  export DATABASE_URL=%s
  export REDIS_URL=%s

Ctrl-C stops all of it.
`, c.DatabaseURL, c.RedisURL)
	}
	return worker.Run(ctx, c)
}

func migrateDev(ctx context.Context, url string) error {
	pool, err := store.Open(ctx, url, "tasker dev", 4)
	if err != nil {
		return err
	}
	defer pool.Close()
	return migrations.Up(ctx, pool)
}

// lockFolder makes sure that one tasker dev at a time uses the folder. The lock
// ends with the process, however it ends.
func lockFolder(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	file, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = file.Close() // nothing was written
		ports := lastPorts(dir)
		return nil, fmt.Errorf("tasker dev runs in %s already, with Postgres on port %d and Redis on port %d; stop it, or choose another folder with --dir", dir, ports.Postgres, ports.Redis)
	}
	// It is all data: none of it belongs into the app's repository.
	_ = os.WriteFile(filepath.Join(dir, ".gitignore"), []byte("*\n"), 0o644) // a convenience: without it git only lists more
	return func() { _ = file.Close() }, nil                                  // ends the lock
}

// devPorts are kept with the data, so that the URLs stay the same.
type devPorts struct {
	Postgres int `json:"postgres"`
	Redis    int `json:"redis"`
}

func lastPorts(dir string) devPorts {
	var ports devPorts
	if text, err := os.ReadFile(filepath.Join(dir, "ports.json")); err == nil {
		_ = json.Unmarshal(text, &ports) // a damaged file: new ports
	}
	return ports
}

func keepPorts(dir string, ports devPorts) {
	if text, err := json.Marshal(ports); err == nil {
		_ = os.WriteFile(filepath.Join(dir, "ports.json"), append(text, '\n'), 0o644) // without it the ports change next time
	}
}
