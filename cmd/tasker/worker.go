package main

import (
	"github.com/spf13/cobra"

	"github.com/taskerhq/tasker/worker"
)

func (a *app) workerCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   "worker",
		Short: "Run tasks",
		Long: `Takes tasks from the database, runs their Go steps, and hands their Ruby steps to
Sidekiq. SIGTERM or Ctrl-C: takes nothing new, lets running handlers finish,
hands back the rest, exits with 0; a second one waits no longer. SIGHUP: reads tasker.yaml and the templates
again and takes up what may change at run time; the log says what did.

tasker config show lists all settings; docs/configuration.md explains them.`,
		Args: argsExactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.databaseURL == "" {
				return noDatabase()
			}
			hangups, stop := onHangup()
			defer stop()
			c, err := workerConfig(a.settings)
			if err != nil {
				return err
			}
			c.Logger = a.logger()
			if c.RedisURL == "" {
				c.Logger.Warn("no Redis given (--redis-url, TASKER_REDIS_URL, REDIS_URL): Ruby steps wait for a worker that has one")
			}
			updates := make(chan worker.Live)
			c.Updates, c.Hurry = updates, hurry
			go a.reload(cmd.Context(), hangups, updates, c.Logger)
			worker.TuneMemory()
			return worker.Run(cmd.Context(), c)
		},
	}
	a.settingFlags(command.Flags(), workerSettings...)
	return command
}
