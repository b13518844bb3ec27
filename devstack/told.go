package devstack

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// Told returns a context that ends when the program is told to stop: by INT, TERM or HUP,
// or by the end of the `go run` that started it, which passes on INT alone. A program that
// starts servers and is not told leaves them behind.
func Told() (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	parent := os.Getppid()
	// On Linux alone; elsewhere there is no such file.
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", parent))
	if err != nil || strings.TrimSpace(string(name)) != "go" {
		return ctx, stop
	}
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		const interval = 500 * time.Millisecond
		look := time.NewTicker(interval)
		defer look.Stop()
		for os.Getppid() == parent {
			select {
			case <-look.C:
			case <-ctx.Done():
				return
			}
		}
		cancel()
	}()
	return ctx, func() { cancel(); stop() }
}
