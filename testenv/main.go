package testenv

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/taskerhq/tasker/devstack"
)

// What the environment may name; see the package comment.
const (
	DatabaseURLVariable = "TASKER_TEST_DATABASE_URL"
	RedisURLVariable    = "TASKER_TEST_REDIS_URL"
	BinaryVariable      = "TASKER_BIN"
)

const stopTimeout = 30 * time.Second

// lazily is a value that is made at first use, once for the whole process,
// error included: hundreds of tests shouldn't each wait for the same failure.
type lazily[T any] struct {
	once  sync.Once
	value T
	err   error
}

func (l *lazily[T]) get(create func() (T, error)) (T, error) {
	l.once.Do(func() { l.value, l.err = create() })
	return l.value, l.err
}

// process is what this test process started and has to end.
var process struct {
	mu       sync.Mutex
	inMain   bool
	cleanups []func()

	workDir     lazily[string]
	postgresURL lazily[string]
	redisURL    lazily[string]
	template    lazily[*cluster]
	binary      lazily[string]
	crashing    lazily[string]
}

// Main runs a package's tests and ends what they started. Goroutines that are
// left then fail the run. It doesn't return.
func Main(m *testing.M) {
	process.mu.Lock()
	process.inMain = true
	process.mu.Unlock()
	code := m.Run()
	process.mu.Lock()
	cleanups := process.cleanups
	process.mu.Unlock()
	for i := len(cleanups) - 1; i >= 0; i-- {
		cleanups[i]()
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, "the tests have ended, and something still runs:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// atEnd has Main call f, last added first. Without Main nothing would, and
// every run would leave its folders behind.
func atEnd(f func()) error {
	process.mu.Lock()
	defer process.mu.Unlock()
	if !process.inMain {
		return fmt.Errorf("this package's tests don't run under testenv.Main: add func TestMain(m *testing.M) { testenv.Main(m) }")
	}
	process.cleanups = append(process.cleanups, f)
	return nil
}

func workDir() (string, error) {
	return process.workDir.get(func() (string, error) {
		dir, cleanup, err := devstack.WorkDir("")
		if err != nil {
			return "", err
		}
		if err := atEnd(cleanup); err != nil {
			cleanup()
			return "", err
		}
		return dir, nil
	})
}

// Dir is a folder for the servers of one test, which their accounts can get into
// (not so t.TempDir). It is removed when the process ends.
func Dir(t testing.TB) string {
	t.Helper()
	work, err := workDir()
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	dir, err := os.MkdirTemp(work, "test-") //nolint:usetesting // t.TempDir is in a folder that only its owner can enter
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatalf("testenv: make a folder for %s: %v", t.Name(), err)
	}
	return dir
}

// postgresURL is the administrator's URL of the Postgres server.
func postgresURL() (string, error) {
	return process.postgresURL.get(func() (string, error) {
		if url := os.Getenv(DatabaseURLVariable); url != "" {
			return url, nil
		}
		dir, err := workDir()
		if err != nil {
			return "", err
		}
		server, err := devstack.StartPostgres(context.Background(), devstack.PostgresOptions{Dir: dir + "/postgres", Fsync: false})
		if err != nil {
			return "", err
		}
		return server.URL("postgres"), atEnd(func() { stop("Postgres", server.Stop) })
	})
}

// redisURL is the URL of database 0 of the Redis server.
func redisURL() (string, error) {
	return process.redisURL.get(func() (string, error) {
		if url := os.Getenv(RedisURLVariable); url != "" {
			return url, nil
		}
		dir, err := workDir()
		if err != nil {
			return "", err
		}
		server, err := devstack.StartRedis(context.Background(), devstack.RedisOptions{Dir: dir + "/redis", Databases: RedisDatabases})
		if err != nil {
			return "", err
		}
		return server.URL(0), atEnd(func() { stop("Redis", server.Stop) })
	})
}

func stop(name string, stop func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if err := stop(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "testenv: stop %s: %v\n", name, err)
	}
}
