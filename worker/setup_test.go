package worker_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/devstack"
	"github.com/taskerhq/tasker/handler"
	"github.com/taskerhq/tasker/migrations"
	"github.com/taskerhq/tasker/sidekiq"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/template"
	"github.com/taskerhq/tasker/testenv"
	"github.com/taskerhq/tasker/worker"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// bundle is one test's own system: a database, a Redis, and what runs on them.
type bundle struct {
	*testing.T
	url, redisURL string
	pool          *pgxpool.Pool
	store         *store.Store
	handlers      *handler.Registry
	sidekiqEnv    []string // added to the environment of Sidekiq processes
	workerEnv     []string // and of worker processes
}

func setup(t *testing.T) *bundle {
	t.Helper()
	t.Parallel()
	url := testenv.Database(t)
	pool := testenv.Pool(t, url)
	b := &bundle{T: t, url: url, redisURL: testenv.Redis(t), pool: pool, store: store.New(pool), handlers: handler.NewRegistry()}
	b.exec(standIn)
	t.Cleanup(b.checkEvents)
	return b
}

// checkEvents holds all events of the test against the catalogue.
func (b *bundle) checkEvents() {
	ctx := context.WithoutCancel(b.Context()) // that of the test has ended
	cursor, err := b.store.EventsSince(ctx, time.Unix(0, 0))
	if err != nil {
		b.Error(err)
		return
	}
	for {
		batch, err := b.store.ReadEvents(ctx, cursor, []string{"*"}, 1000, "", "")
		if err != nil {
			b.Error(err)
			return
		}
		for i := range batch.Events {
			if err := batch.Events[i].Check(); err != nil {
				b.Error(err)
			}
		}
		if cursor = batch.Cursor; len(batch.Events) == 0 {
			return
		}
	}
}

// setupOwnPostgres is setup with a server that the test may kill.
func setupOwnPostgres(t *testing.T) (*bundle, *devstack.Postgres) {
	t.Helper()
	t.Parallel()
	dir, cleanup, err := devstack.WorkDir("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cleanup)
	postgres, err := devstack.StartPostgres(t.Context(), devstack.PostgresOptions{Dir: dir, Fsync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = postgres.Kill() }) // the test is over
	if err := postgres.CreateDatabase(t.Context(), "crash"); err != nil {
		t.Fatal(err)
	}
	url := postgres.URL("crash")
	pool := testenv.Pool(t, url)
	if err := migrations.Up(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	b := &bundle{T: t, url: url, redisURL: testenv.Redis(t), pool: pool, store: store.New(pool), handlers: handler.NewRegistry()}
	b.exec(standIn)
	return b, postgres
}

// patience is how long a test waits for what has to come. Nothing is asserted
// to be this slow; it only bounds a hanging test.
const patience = 60 * time.Second

func (b *bundle) register(yaml string) {
	b.Helper()
	if _, err := b.tryRegister(yaml); err != nil {
		b.Fatal(err)
	}
}

func (b *bundle) tryRegister(yaml string) (store.Registration, error) {
	b.Helper()
	t, err := template.Parse("test.yaml", []byte(yaml), template.Options{})
	if err != nil {
		b.Fatal(err)
	}
	return b.store.RegisterTemplate(b.Context(), t, template.Checksum(t))
}

// start runs a worker in this process and returns a function that stops it and
// expects a clean end.
func (b *bundle) start(change ...func(*worker.Config)) (stop func()) {
	b.Helper()
	started := make(chan int64, 1)
	config := worker.Config{
		DatabaseURL: b.url, RedisURL: b.redisURL, Handlers: b.handlers,
		Logger:  slog.New(slog.NewTextHandler(testWriter{b.T}, nil)),
		Started: func(id int64) { started <- id },
	}
	for _, f := range change {
		f(&config)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- worker.Run(ctx, config) }()
	select {
	case <-started:
	case err := <-ended:
		cancel()
		b.Fatalf("worker did not start: %v", err)
	}
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			b.Errorf("worker ended with: %v", err)
		}
	})
	b.Cleanup(stop)
	return stop
}

func parkAfter(d time.Duration) func(*worker.Config) {
	return func(c *worker.Config) { c.ParkAfter, c.HoldFor = d, d }
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// enqueue inserts a task as an app would, by plain SQL.
func (b *bundle) enqueue(name, context string) int64 {
	b.Helper()
	return b.enqueueMany(name, context, 1)[0]
}

func (b *bundle) enqueueMany(name, context string, n int) []int64 {
	b.Helper()
	rows, err := b.pool.Query(b.Context(), `INSERT INTO tasker.tasks (namespace, name, context)
		SELECT 'test', $1, $2 FROM generate_series(1, $3) RETURNING task_id`, name, context, n)
	if err != nil {
		b.Fatal(err)
	}
	defer rows.Close()
	var ids []int64
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			b.Fatal(err)
		}
		ids = append(ids, id)
	}
	if rows.Err() != nil {
		b.Fatal(rows.Err())
	}
	return ids
}

// finish waits until no task is open any more.
func (b *bundle) finish() {
	b.Helper()
	b.until("all tasks are finished", func() bool {
		return b.number(`SELECT count(*) FROM tasker.tasks WHERE state IN ('pending', 'in_progress')`) == 0
	})
}

// until waits for something that only the database or Redis can tell.
func (b *bundle) until(what string, holds func() bool) {
	b.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.dump()
			b.Fatalf("after %s it is still not so that %s", patience, what)
		}
	}
}

// dump logs what is left open, for a test that fails.
func (b *bundle) dump() {
	b.Helper()
	b.Log(b.text(`SELECT coalesce(string_agg(format('task %s %s owner=%s epoch=%s', task_id, state, owner, epoch), E'\n'), 'no open tasks')
		FROM tasker.tasks WHERE state IN ('pending', 'in_progress')`))
	b.Log(b.text(`SELECT coalesce(string_agg(format('step %s %s %s attempt %s', s.step_id, s.name, s.state, s.attempts), E'\n' ORDER BY s.step_id), 'no steps')
		FROM tasker.steps s JOIN tasker.tasks t USING (task_id) WHERE t.state IN ('pending', 'in_progress')`))
	b.Log(b.text(`SELECT coalesce(string_agg(format('event %s task %s step %s attempt %s: %s', event_id, task_id, step_id, attempt, name), E'\n' ORDER BY event_id), 'no events')
		FROM (SELECT * FROM tasker.events ORDER BY event_id DESC LIMIT 60) e`))
	b.Log(b.text(`SELECT coalesce(string_agg(format('river job %s %s %s', id, args, state), E'\n'), 'no jobs') FROM tasker.river_job WHERE state <> 'completed'`))
}

func (b *bundle) number(sql string, args ...any) int {
	b.Helper()
	var n int
	if err := b.pool.QueryRow(context.Background(), sql, args...).Scan(&n); err != nil {
		b.Fatalf("%s: %v", sql, err)
	}
	return n
}

func (b *bundle) text(sql string, args ...any) string {
	b.Helper()
	var s string
	if err := b.pool.QueryRow(context.Background(), sql, args...).Scan(&s); err != nil {
		b.Fatalf("%s: %v", sql, err)
	}
	return s
}

func (b *bundle) exec(sql string, args ...any) {
	b.Helper()
	if _, err := b.pool.Exec(context.Background(), sql, args...); err != nil {
		b.Fatalf("%s: %v", sql, err)
	}
}

// want compares one value from the database.
func (b *bundle) want(want string, sql string, args ...any) {
	b.Helper()
	if got := b.text(sql, args...); got != want {
		b.Errorf("%s\n got: %s\nwant: %s", sql, got, want)
	}
}

// step reads one step of a task.
func (b *bundle) step(task int64, name string) store.Step {
	b.Helper()
	steps, err := b.store.StepsOf(b.Context(), task)
	if err != nil {
		b.Fatal(err)
	}
	for _, s := range steps {
		if s.Name == name {
			return s
		}
	}
	b.Fatalf("task %d has no step %s", task, name)
	return store.Step{}
}

func (b *bundle) failure(task int64, name string) tasker.Failure {
	b.Helper()
	var f tasker.Failure
	if err := json.Unmarshal(b.step(task, name).Error, &f); err != nil {
		b.Fatalf("step %s has no failure that can be read: %v", name, err)
	}
	return f
}

func (b *bundle) redis() *redis.Client {
	b.Helper()
	client, err := sidekiq.Open(b.redisURL)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = client.Close() }) // the test is over
	return client
}

// queued reads the payloads of a Sidekiq queue.
func (b *bundle) queued(queue string) []string {
	b.Helper()
	client, err := sidekiq.Open(b.redisURL)
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	list, err := client.LRange(b.Context(), "queue:"+queue, 0, -1).Result()
	if err != nil {
		b.Fatal(err)
	}
	return list
}

// child is a process that a test starts, and may kill.
type child struct {
	cmd *exec.Cmd
	log *syncBuffer
}

// worker starts the tasker program itself: what a test kills must be a process.
func (b *bundle) worker(args ...string) *child {
	b.Helper()
	c := b.launch(args...)
	b.until("the worker takes tasks", func() bool { return strings.Contains(c.log.String(), "worker takes tasks") })
	return c
}

// launch is worker for a test that doesn't want to wait until it takes tasks.
func (b *bundle) launch(args ...string) *child {
	b.Helper()
	return b.launchProgram(testenv.TaskerBinary(b.T), nil, args...)
}

func (b *bundle) launchProgram(program string, env []string, args ...string) *child {
	b.Helper()
	args = append([]string{"worker", "--database-url", b.url, "--redis-url", b.redisURL, "--log-format", "json"}, args...)
	cmd := exec.Command(program, args...)
	cmd.Env = append(append(os.Environ(), b.workerEnv...), env...)
	return b.spawn(cmd)
}

// sidekiq starts a real Sidekiq with the handlers of testdata/ruby. Later
// arguments go before those here.
func (b *bundle) sidekiq(args ...string) *child {
	b.Helper()
	bridge, err := filepath.Abs("../ruby_bridge/lib")
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command("sidekiq", append([]string{"-r", "./boot.rb", "-q", "default", "-c", "5", "-t", "5"}, args...)...)
	cmd.Dir = "testdata/ruby"
	cmd.Env = append(os.Environ(), "RUBYLIB="+bridge, "REDIS_URL="+b.redisURL, "TASKER_DATABASE_URL="+b.url)
	cmd.Env = append(cmd.Env, b.sidekiqEnv...)
	c := b.spawn(cmd)
	b.until("sidekiq runs", func() bool {
		return b.number(`SELECT count(*) FROM tasker.processes WHERE identity LIKE '%' || $1::text || '%'`, fmt.Sprint(cmd.Process.Pid)) > 0
	})
	return c
}

func (b *bundle) spawn(cmd *exec.Cmd) *child {
	b.Helper()
	c := &child{cmd: cmd, log: &syncBuffer{}}
	cmd.Stdout, cmd.Stderr = c.log, c.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		b.Fatalf("start %s: %v", cmd, err)
	}
	b.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill() // it may have ended meanwhile
			_ = cmd.Wait()         // killed: the error says nothing new
		}
		if b.Failed() {
			b.Logf("%s\n%s", filepath.Base(cmd.Path), c.log.String())
		}
	})
	return c
}

// kill ends the process as a crash would.
func (c *child) kill(b *bundle) {
	b.Helper()
	if err := c.cmd.Process.Kill(); err != nil {
		b.Fatal(err)
	}
	_ = c.cmd.Wait() // killed: the error says nothing new
}

// terminate ends the process politely and returns its exit code.
func (c *child) terminate(b *bundle) int {
	b.Helper()
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		b.Fatal(err)
	}
	var exit *exec.ExitError
	if err := c.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		b.Fatal(err)
	}
	return c.cmd.ProcessState.ExitCode()
}

// syncBuffer is a log that is read while it is written.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

var _ io.Writer = (*syncBuffer)(nil)
