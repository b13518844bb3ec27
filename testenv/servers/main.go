// Command servers runs a command with the servers that tests need: it starts
// Postgres and Redis and builds the tasker program, names them in the
// environment (TASKER_TEST_DATABASE_URL, TASKER_TEST_REDIS_URL, TASKER_BIN),
// runs the command, and ends with the command's exit code. So one run of all
// tests, Go and Ruby, shares one pair of servers.
//
//	go run ./testenv/servers -- go test ./...
//
// What the environment names already is used as it is, and not stopped.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/taskerhq/tasker/devstack"
	"github.com/taskerhq/tasker/testenv"
)

const (
	exitUsage  = 2
	exitFailed = 125 // as `docker run` and `env` do: it wasn't the command that failed

	stopTimeout = 30 * time.Second
	// maxConnections: as many packages as the machine has cores run at once,
	// each with several parallel tests, each with pools.
	maxConnections = 500
)

func main() {
	command := os.Args[1:]
	if len(command) > 0 && command[0] == "--" {
		command = command[1:]
	}
	if len(command) == 0 {
		fmt.Fprintln(os.Stderr, "usage: servers -- COMMAND [ARGUMENT …]")
		os.Exit(exitUsage)
	}
	code, err := run(command)
	if err != nil {
		fmt.Fprintln(os.Stderr, "servers:", err)
	}
	os.Exit(code)
}

// run is main with deferred calls that happen.
func run(command []string) (int, error) {
	// From the first moment on: servers that were started are also stopped.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	type outcome struct {
		environment []string
		err         error
	}
	var stops []func()
	defer func() {
		for i := len(stops) - 1; i >= 0; i-- {
			stops[i]()
		}
	}()
	prepared := make(chan outcome, 1)
	go func() {
		environment, err := prepare(ctx, func(stop func()) { stops = append(stops, stop) })
		prepared <- outcome{environment, err}
	}()
	select {
	case got := <-signals:
		cancel()
		<-prepared
		return exitCodeOf(got), fmt.Errorf("%s", got)
	case result := <-prepared:
		if result.err != nil {
			return exitFailed, result.err
		}
		return supervise(command, result.environment, signals)
	}
}

// prepare starts what the environment doesn't name, and returns the variables
// that name it.
func prepare(ctx context.Context, atEnd func(func())) ([]string, error) {
	dir, cleanup, err := devstack.WorkDir("")
	if err != nil {
		return nil, err
	}
	atEnd(cleanup)
	var environment []string
	if os.Getenv(testenv.DatabaseURLVariable) == "" {
		postgres, err := devstack.StartPostgres(ctx, devstack.PostgresOptions{
			Dir: filepath.Join(dir, "postgres"), Fsync: false, MaxConnections: maxConnections,
		})
		if err != nil {
			return nil, err
		}
		atEnd(func() { stop("Postgres", postgres.Stop) })
		environment = append(environment, testenv.DatabaseURLVariable+"="+postgres.URL("postgres"))
	}
	if os.Getenv(testenv.RedisURLVariable) == "" {
		redis, err := devstack.StartRedis(ctx, devstack.RedisOptions{
			Dir: filepath.Join(dir, "redis"), Databases: testenv.RedisDatabases,
		})
		if err != nil {
			return nil, err
		}
		atEnd(func() { stop("Redis", redis.Stop) })
		environment = append(environment, testenv.RedisURLVariable+"="+redis.URL(0))
	}
	if os.Getenv(testenv.BinaryVariable) == "" {
		binary, err := testenv.BuildTasker(ctx, dir)
		if err != nil {
			return nil, err
		}
		environment = append(environment, testenv.BinaryVariable+"="+binary)
	}
	return environment, nil
}

// supervise runs the command and passes signals on, to everything that the
// command has started too: `go test` runs test programs, make runs shells.
func supervise(command, environment []string, signals <-chan os.Signal) (int, error) {
	const patience = 20 * time.Second
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), environment...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return exitFailed, fmt.Errorf("run %s: %w", command[0], err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	code := 0
	var giveUp <-chan time.Time
	for {
		select {
		case got := <-signals:
			code = exitCodeOf(got)
			if giveUp == nil {
				giveUp = time.After(patience)
			}
			_ = syscall.Kill(-cmd.Process.Pid, got.(syscall.Signal))
		case <-giveUp:
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		case err := <-ended:
			var exit *exec.ExitError
			switch {
			case code != 0:
				return code, nil
			case err == nil:
				return 0, nil
			case errors.As(err, &exit) && exit.ExitCode() > 0:
				return exit.ExitCode(), nil
			default:
				return exitFailed, fmt.Errorf("run %s: %w", command[0], err)
			}
		}
	}
}

// exitCodeOf is what shells report for a process that a signal ended.
func exitCodeOf(sig os.Signal) int {
	const signalBase = 128
	return signalBase + int(sig.(syscall.Signal))
}

func stop(name string, stop func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if err := stop(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "servers: stop %s: %v\n", name, err)
	}
}
