package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/taskerhq/tasker/config"
	"github.com/taskerhq/tasker/migrations"
	"github.com/taskerhq/tasker/store"
)

// app is what all commands share: the global flags and where output goes.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer

	output      string
	configFile  string            // --config
	given       map[string]string // flags that set a setting, by its key
	settings    *config.Loaded    // nil in commands that are about the file itself
	databaseURL string            // of settings, as is redisURL
	redisURL    string
	level       slog.LevelVar
}

func newRoot(stdin io.Reader, stdout, stderr io.Writer) *cobra.Command {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr, given: map[string]string{}}
	root := &cobra.Command{
		Use:   "tasker",
		Short: "Workflows for Rails teams, on Postgres, River and Sidekiq",
		Long: `A Rails app inserts a task into Postgres; workers run the DAG of its steps;
Ruby steps run in Sidekiq; results land in the same Postgres.

Start here: tasker dev. It starts Postgres, Redis and a worker of its own.`,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if err := a.check(); err != nil {
				return err
			}
			return a.load()
		},
	}
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &usageError{fmt.Errorf("%w; see %s --help", err, c.CommandPath())}
	})
	flags := root.PersistentFlags()
	flags.StringVar(&a.configFile, "config", "", "file of settings (default $TASKER_CONFIG, else tasker.yaml where there is one)")
	a.settingFlags(flags, globalSettings...)
	flags.StringVarP(&a.output, "output", "o", "text", "text, or json for scripts")
	root.AddCommand(a.migrateCommand(), a.workerCommand(), a.devCommand(), a.templateCommand(), a.taskCommand(), a.stepCommand(), a.gateCommand(), a.explainCommand(), a.deadLetterCommand(), a.eventsCommand(), a.webhookCommand(), a.analyticsCommand(), a.pruneCommand(), a.doctorCommand(), a.healthCommand(), a.benchCommand(), a.configCommand())
	return group(root)
}

func (a *app) check() error {
	if a.output != "text" && a.output != "json" {
		return &usageError{fmt.Errorf("--output must be text or json, not %q", a.output)}
	}
	return nil
}

// load reads the settings.
func (a *app) load() (err error) {
	if a.settings, err = config.Load(a.sources()); err != nil {
		return err
	}
	a.databaseURL, a.redisURL = a.settings.Database.URL, a.settings.Redis.URL
	a.setLevel(a.settings)
	slog.SetDefault(a.logger()) // the Redis client and the like have no other
	return nil
}

func (a *app) sources() config.Sources {
	return config.Sources{File: a.configFile, Getenv: os.Getenv, Flags: a.given}
}

func (a *app) setLevel(l *config.Loaded) {
	var level slog.Level
	_ = level.UnmarshalText([]byte(l.Log.Level)) // config lets only levels through
	a.level.Set(level)
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// database connects to the database that the flags name.
func (a *app) database(ctx context.Context) (*pgxpool.Pool, error) {
	if a.databaseURL == "" {
		return nil, noDatabase()
	}
	// Four connections: a command asks one question at a time, or a few.
	return store.Server{URL: a.databaseURL, Timeout: a.settings.Database.ConnectTimeout, Pooled: a.settings.Database.PollOnly()}.Open(ctx, "tasker", 4)
}

// server is database for what keeps a lock over several transactions.
func (a *app) server(ctx context.Context) (*pgxpool.Pool, error) {
	if a.settings.Database.PollOnly() {
		return nil, &usageError{errors.New("migrations need the Postgres server itself, not a pooler: " +
			"give its own address with --database-url, and TASKER_DATABASE_MODE=direct")}
	}
	return a.database(ctx)
}

// withStore runs do over a database that fits this binary.
func (a *app) withStore(ctx context.Context, do func(*store.Store) error) error {
	pool, err := a.database(ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := migrations.Check(ctx, pool); err != nil {
		return err
	}
	return do(store.New(pool))
}

// group is a command that only holds others. Without one of them it prints its
// help; a word that is none of them is a mistake.
func group(c *cobra.Command) *cobra.Command {
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return c.Help()
		}
		message := fmt.Sprintf("%s has no command %q", c.CommandPath(), args[0])
		if near := c.SuggestionsFor(args[0]); len(near) > 0 {
			message += "; did you mean " + strings.Join(near, " or ") + "?"
		}
		return &usageError{fmt.Errorf("%s See %s --help", strings.TrimSuffix(message, "?")+".", c.CommandPath())}
	}
	c.SuggestionsMinimumDistance = 2
	return c
}

// argsExactly is cobra.ExactArgs with an error that exits as wrong usage.
func argsExactly(n int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if err := cobra.ExactArgs(n)(c, args); err != nil {
			return &usageError{fmt.Errorf("%w: %s", err, c.UseLine())}
		}
		return nil
	}
}

// moment is a time as people read it, by their own clock.
func moment(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

// round makes durations readable.
func round(d time.Duration) time.Duration {
	switch {
	case d < time.Second:
		return d.Round(100 * time.Microsecond)
	case d < time.Minute:
		return d.Round(10 * time.Millisecond)
	}
	return d.Round(time.Second)
}
