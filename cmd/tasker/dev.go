package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
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
		c                       worker.Config
	)
	command := &cobra.Command{
		Use:   "dev",
		Short: "Run Postgres, Redis and a worker for development",
		Long: `Starts a private Postgres and Redis on loopback, migrates, registers the
templates, runs a worker, and prints the URLs for your app. Ctrl-C stops it all;
the data stays in the folder for the next time.`,
		Args: argsExactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.dev(cmd.Context(), dir, postgresPort, redisPort, c)
		},
	}
	flags := command.Flags()
	flags.StringVar(&dir, "dir", ".tasker", "folder for the data of Postgres and Redis")
	flags.IntVar(&postgresPort, "postgres-port", 0, "port for Postgres; 0: a free one")
	flags.IntVar(&redisPort, "redis-port", 0, "port for Redis; 0: a free one")
	flags.StringVar(&c.Templates, "templates", "", "folder of template YAML to register")
	flags.StringVar(&c.Environment, "environment", "development", "whose overlays to apply to the templates")
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

	// The servers outlive ctx: the worker hands its tasks back to them first.
	stopping := func() (context.Context, context.CancelFunc) {
		return context.WithTimeout(context.Background(), 20*time.Second)
	}
	fmt.Fprintln(a.stderr, "starting Postgres …")
	postgres, err := devstack.StartPostgres(ctx, devstack.PostgresOptions{Dir: filepath.Join(dir, "postgres"), Port: postgresPort, Fsync: true})
	if err != nil {
		return err
	}
	defer func() {
		stop, cancel := stopping()
		defer cancel()
		err = errors.Join(err, postgres.Stop(stop))
	}()
	fmt.Fprintln(a.stderr, "starting Redis …")
	redis, err := devstack.StartRedis(ctx, devstack.RedisOptions{Dir: filepath.Join(dir, "redis"), Port: redisPort})
	if err != nil {
		return err
	}
	defer func() {
		stop, cancel := stopping()
		defer cancel()
		err = errors.Join(err, redis.Stop(stop))
	}()

	if err := postgres.CreateDatabase(ctx, "tasker"); err != nil {
		return err
	}
	c.DatabaseURL, c.RedisURL, c.Logger = postgres.URL("tasker"), redis.URL(0), a.logger()
	if err := migrateDev(ctx, c.DatabaseURL); err != nil {
		return err
	}
	c.Started = func(int64) {
		if a.output == "json" {
			_ = a.printJSON(map[string]string{"database_url": c.DatabaseURL, "redis_url": c.RedisURL}) // a closed pipe is the reader's wish
			return
		}
		fmt.Fprintf(a.stdout, `
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
