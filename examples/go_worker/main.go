// Command go_worker is a worker with a Go handler of its own. It works beside
// any number of `tasker worker`s on the same database:
//
//	bin/tasker dev                                   # prints DATABASE_URL
//	DATABASE_URL=… go run ./examples/go_worker
//	DATABASE_URL=… bin/tasker task enqueue examples/greet --context '{"name": "Ada"}'
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/handler"
	"github.com/taskerhq/tasker/worker"
)

// greet returns a greeting. Every other error would be tried again; nobody can
// be greeted without a name, however often it is tried.
func greet(_ context.Context, attempt *tasker.Attempt) (any, error) {
	var in struct {
		Name string `json:"name"`
	}
	if err := json.Unmarshal(attempt.Context, &in); err != nil {
		return nil, handler.Permanent("bad_context", err)
	}
	if in.Name == "" {
		return nil, handler.Permanent("no_name", errors.New("the context has no name"))
	}
	return map[string]string{"greeting": "Hello, " + in.Name}, nil
}

func main() {
	handlers := handler.NewRegistry()
	handlers.Register("examples.greet", greet)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := worker.Run(ctx, worker.Config{
		DatabaseURL: os.Getenv("DATABASE_URL"),
		Handlers:    handlers,
		Live:        worker.Live{Templates: "examples/go_worker/templates"},
		Logger:      slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "go_worker:", err)
		os.Exit(1)
	}
}
