package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/lmittmann/tint"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/taskerhq/tasker/migrations"
	"github.com/taskerhq/tasker/store"
)

// app is what all commands share: the global flags and where output goes.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer

	databaseURL string
	redisURL    string
	output      string
	logFormat   string
	logLevel    string
}

func newRoot(stdin io.Reader, stdout, stderr io.Writer) *cobra.Command {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr}
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
			return a.check()
		},
	}
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &usageError{fmt.Errorf("%w; see %s --help", err, c.CommandPath())}
	})
	flags := root.PersistentFlags()
	flags.StringVar(&a.databaseURL, "database-url", "", "Postgres (default $TASKER_DATABASE_URL, else $DATABASE_URL)")
	flags.StringVar(&a.redisURL, "redis-url", "", "Sidekiq's Redis (default $TASKER_REDIS_URL, else $REDIS_URL)")
	flags.StringVarP(&a.output, "output", "o", "text", "text, or json for scripts")
	flags.StringVar(&a.logFormat, "log-format", "auto", "text, json, or auto: text on a terminal, JSON in a pipe")
	flags.StringVar(&a.logLevel, "log-level", "info", "debug, info, warn or error")
	root.AddCommand(a.migrateCommand(), a.workerCommand(), a.devCommand(), a.templateCommand(), a.taskCommand(), a.stepCommand(), a.gateCommand(), a.explainCommand())
	return group(root)
}

func (a *app) check() error {
	if a.output != "text" && a.output != "json" {
		return &usageError{fmt.Errorf("--output must be text or json, not %q", a.output)}
	}
	if a.logFormat != "auto" && a.logFormat != "text" && a.logFormat != "json" {
		return &usageError{fmt.Errorf("--log-format must be text, json or auto, not %q", a.logFormat)}
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(a.logLevel)); err != nil {
		return &usageError{fmt.Errorf("--log-level must be debug, info, warn or error, not %q", a.logLevel)}
	}
	a.databaseURL = firstOf(a.databaseURL, os.Getenv("TASKER_DATABASE_URL"), os.Getenv("DATABASE_URL"))
	a.redisURL = firstOf(a.redisURL, os.Getenv("TASKER_REDIS_URL"), os.Getenv("REDIS_URL"))
	return nil
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// logger writes to stderr: colour on a terminal, JSON when piped or asked for.
func (a *app) logger() *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(a.logLevel)) // check has refused what does not parse
	if a.logFormat == "json" || a.logFormat == "auto" && !isTerminal(a.stderr) {
		return slog.New(slog.NewJSONHandler(a.stderr, &slog.HandlerOptions{Level: level}))
	}
	return slog.New(tint.NewTextHandler(a.stderr, &tint.Options{Level: level, TimeFormat: "15:04:05.000", NoColor: !hasColour(a.stderr)}))
}

// isTerminal reports whether w is a terminal.
func isTerminal(w io.Writer) bool {
	if c, ok := w.(*checkedWriter); ok {
		return c.terminal
	}
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// hasColour reports whether w is a terminal that shows colour, and may.
func hasColour(w io.Writer) bool {
	return isTerminal(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// database connects to the database that the flags name.
func (a *app) database(ctx context.Context) (*pgxpool.Pool, error) {
	if a.databaseURL == "" {
		return nil, &usageError{fmt.Errorf("no database given: set --database-url, TASKER_DATABASE_URL or DATABASE_URL")}
	}
	return store.Open(ctx, a.databaseURL, "tasker", 4)
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
