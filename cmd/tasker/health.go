package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/taskerhq/tasker/safetext"
	"github.com/taskerhq/tasker/server"
	"github.com/taskerhq/tasker/store"
)

func (a *app) healthCommand() *cobra.Command {
	var timeout time.Duration
	command := &cobra.Command{
		Use: "health", Short: "Whether all is there that tasks need: database, migrations, Redis, a worker", Args: argsExactly(0),
		Long: `Asks the database, Sidekiq's Redis where one is given, and whether a worker is
alive, all at once. A worker answers the like over HTTP, about itself, at
/health/live and /health/ready (server.listen).

Exit code 0: all answer. 1: something is missing; what, is said.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if a.databaseURL == "" {
				return noDatabase()
			}
			settings, err := workerConfig(a.settings)
			if err != nil {
				return err
			}
			opening, cancel := context.WithTimeout(c.Context(), timeout)
			defer cancel()
			reached := store.Server{URL: settings.DatabaseURL, Timeout: timeout, Pooled: settings.PollOnly}
			pool, err := reached.Open(opening, "tasker health", 4)
			if err != nil {
				return err
			}
			defer pool.Close()
			p := server.Probe{Store: store.New(pool), MostLag: settings.MostLag, Timeout: timeout}
			p.Working = func(ctx context.Context) error {
				b, err := p.Store.Backlog(ctx)
				if err == nil && b.Workers == 0 {
					err = errors.New("no worker is alive: tasker worker starts one")
				}
				return err
			}
			if settings.RedisURL != "" {
				client, err := settings.Redis.Open(settings.RedisURL)
				if err != nil {
					return err
				}
				defer client.Close()
				p.Redis = func(ctx context.Context) error { return client.Ping(ctx).Err() }
			}
			return a.printReady(p.Ready(c.Context()))
		},
	}
	command.Flags().DurationVar(&timeout, "timeout", 5*time.Second, "how long to wait for answers")
	return command
}

func (a *app) printReady(r *server.Readiness) error {
	if a.output == "json" {
		if err := a.printJSON(r); err != nil {
			return err
		}
	} else {
		for _, part := range slices.Sorted(maps.Keys(r.Checks)) {
			check := r.Checks[part]
			mark := fmt.Sprintf("%-6s", check.Status)
			if hasColour(a.stdout) {
				mark = map[string]string{"ok": green, "failed": red}[check.Status] + mark + plain
			}
			fprintf(a.stdout, "%s  %s: %s\n", styled(mark), part, safetext.Mask(check.Message))
		}
	}
	if !r.Ready {
		return errors.New(r.Message)
	}
	return nil
}
