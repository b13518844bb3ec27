// Command tasker migrates the database, runs workers, and shows and steers
// tasks. This package is flags, wiring and signals; the work is done elsewhere.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/taskerhq/tasker/config"
	"github.com/taskerhq/tasker/migrations"
	"github.com/taskerhq/tasker/safetext"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/template"
	"github.com/taskerhq/tasker/worker"
)

// version is set when a release is built.
var version = "dev"

// Exit codes; docs/cli.md lists them for scripts.
const (
	exitDone     = 0
	exitFailed   = 1
	exitUsage    = 2 // wrong flags or arguments
	exitNotFound = 3
	exitRefused  = 4 // bad input: a template, a context, a file of settings, an unmigrated database
)

func main() {
	ctx, stop := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		stop()
		<-signals
		close(hurry)
		signal.Stop(signals) // a third one ends the program as it ends any other
	}()
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	os.Exit(code)
}

// hurry is closed by the second signal to stop.
var hurry = make(chan struct{})

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	out, told := newScreen(stdout), newScreen(stderr)
	defer func() { _ = told.close() }() // what a write of an error failed with is of no use
	root := newRoot(stdin, out, told)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if failed := out.close(); err == nil && failed != nil && !errors.Is(failed, syscall.EPIPE) { // a reader that has had enough is no failure
		err = fmt.Errorf("write to standard output: %w", failed)
	}
	if err == nil {
		return exitDone
	}
	fprintln(told, "tasker:", styled(safetext.Mask(err.Error()))) // its lines are the program's
	var (
		usage     *usageError
		refused   *store.RefusedError
		templates template.Errors
		settings  config.Errors
	)
	switch {
	case errors.As(err, &usage), errors.Is(err, worker.ErrConfig), errors.As(err, &settings) && !settings.InFile():
		return exitUsage
	case errors.Is(err, store.ErrNotFound):
		return exitNotFound
	case errors.As(err, &refused), errors.As(err, &templates), settings.InFile(),
		errors.Is(err, migrations.ErrNotMigrated), errors.Is(err, migrations.ErrNewer):
		return exitRefused
	}
	return exitFailed
}

// usageError is a mistake in flags or arguments.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }
