package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/taskerhq/tasker/handler"
	"github.com/taskerhq/tasker/worker"
)

func (a *app) workerCommand() *cobra.Command {
	var c worker.Config
	var httpHosts []string
	var reading templateFlags
	command := &cobra.Command{
		Use:   "worker",
		Short: "Run tasks",
		Long: `Takes tasks from the database, runs their Go steps, and hands their Ruby steps to
Sidekiq. SIGTERM or Ctrl-C: takes nothing new, lets running handlers finish,
hands back the rest, exits with 0.`,
		Args: argsExactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.databaseURL == "" {
				return &usageError{fmt.Errorf("no database given: set --database-url, TASKER_DATABASE_URL or DATABASE_URL")}
			}
			c.DatabaseURL, c.RedisURL, c.Logger = a.databaseURL, a.redisURL, a.logger()
			if c.RedisURL == "" {
				c.Logger.Warn("no Redis given (--redis-url, TASKER_REDIS_URL, REDIS_URL): Ruby steps wait for a worker that has one")
			}
			if c.MaxTasks < 1 {
				return &usageError{fmt.Errorf("--max-tasks is a number from 1, not %d", c.MaxTasks)}
			}
			opts, err := reading.options()
			if err != nil {
				return err
			}
			c.Environment, c.Variables = opts.Environment, opts.Variables
			c.Handlers = handler.NewRegistry()
			c.Handlers.AllowHTTP(httpHosts...)
			return worker.Run(cmd.Context(), c)
		},
	}
	flags := command.Flags()
	flags.StringVar(&c.Templates, "templates", os.Getenv("TASKER_TEMPLATES"), "folder of template YAML to register at start ($TASKER_TEMPLATES)")
	reading.register(flags, "")
	flags.StringSliceVar(&httpHosts, "http-allow", nil, "host that tasker.http may call; may be given more than once")
	flags.IntVar(&c.MaxTasks, "max-tasks", 500, "tasks to run at once")
	flags.DurationVar(&c.Lease, "lease", 4*time.Second, "silence after which a worker counts as dead")
	flags.DurationVar(&c.ParkAfter, "park-after", 2*time.Second, "how long to keep a task that only waits")
	flags.DurationVar(&c.Shutdown, "shutdown-timeout", 25*time.Second, "how long running Go handlers may take after SIGTERM")
	return command
}
