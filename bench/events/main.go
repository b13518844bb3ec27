// Command events measures how fast events get from Go to a durable subscriber
// in one Ruby process, with everything that this takes: reading, parsing,
// calling the block for each event, and moving the cursor in Postgres.
//
//   - backlog: the events are there before the subscriber starts
//   - live: it reads while four writers write
//   - killed: the same, with a kill -9 of the subscriber in the middle, and a
//     second one that takes over
//
// Writers write as workers do: 100 events in a transaction, each of a task and
// a step, a quarter of them with data. fsync and synchronous_commit are on. It
// fails when an event is lost, when more than the 1000 of a batch are
// repeated after the kill, or any without. Run it from the root of the repository, on a
// quiet machine:
//
//	go run ./bench/events
package main

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskerhq/tasker/bench/stage"
	"github.com/taskerhq/tasker/devstack"
	"github.com/taskerhq/tasker/migrations"
)

const (
	writers = 4
	batch   = 100
	window  = 1000 // events that may come again after a kill -9
	tasks   = 1000
	silence = 20 * time.Second // without an event: what is missing is lost
)

const prepareSQL = `
	SELECT tasker.register_template('bench', 'events', '1.0.0', '', '{}', 'events', 10, '[{"position": 0, "name": "only", "handler": "tasker.echo", "attempt_limit": 3}]');
	INSERT INTO tasker.tasks (namespace, name) SELECT 'bench', 'events' FROM generate_series(1, ` + "1000" + `)`

const writeSQL = `
	INSERT INTO tasker.events (task_id, step_id, attempt, name, data)
	SELECT 1 + i % 1000, 1 + i % 1000, 1, CASE i % 2 WHEN 0 THEN 'step.handle' ELSE 'step.completed' END,
	       CASE WHEN i % 4 = 3 THEN '{"class": "Gateway::Busy", "message": "the gateway is busy", "retry_in_seconds": 2.5}'::jsonb END
	FROM generate_series($1::int, $1::int + 99) i ORDER BY i`

func main() {
	n := flag.Int("n", 300_000, "events per series")
	flag.Parse()
	stage.Main("events", func(ctx context.Context) error { return measure(ctx, *n/batch/writers*batch*writers) })
}

func measure(ctx context.Context, n int) (err error) {
	dir, cleanup, err := devstack.WorkDir("")
	if err != nil {
		return err
	}
	defer cleanup()
	postgres, err := devstack.StartPostgres(ctx, devstack.PostgresOptions{Dir: filepath.Join(dir, "postgres"), Fsync: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, postgres.Stop(context.WithoutCancel(ctx))) }()
	fmt.Printf("%-8s %9s %9s %8s %9s %6s %9s\n", "series", "events", "seconds", "per s", "takeover", "lost", "repeated")
	for _, series := range []string{"backlog", "live", "killed"} {
		if err := postgres.CreateDatabase(ctx, series); err != nil {
			return err
		}
		if err := run(ctx, postgres.URL(series), series, n); err != nil {
			return fmt.Errorf("%s: %w", series, err)
		}
	}
	return nil
}

func run(ctx context.Context, url, series string, n int) error {
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := migrations.Up(ctx, pool); err != nil {
		return err
	}
	if _, err := pool.Exec(ctx, prepareSQL); err != nil {
		return err
	}
	if series == "backlog" {
		if err := write(ctx, pool, n); err != nil {
			return err
		}
	}
	counts := &tally{at: make(chan struct{}, 1)}
	first, err := subscribe(ctx, url, series == "killed", counts)
	if err != nil {
		return err
	}
	defer first.end()
	begun := time.Now()
	writing := make(chan error, 1)
	go func() {
		if series == "backlog" {
			writing <- nil
			return
		}
		begun = time.Now()
		writing <- write(ctx, pool, n)
	}()
	var takeover time.Duration
	if series == "killed" {
		if err := counts.wait(ctx, n/2); err != nil {
			return err
		}
		first.end()
		killed, before := time.Now(), counts.total()
		second, err := subscribe(ctx, url, true, counts)
		if err != nil {
			return err
		}
		defer second.end()
		if err := counts.wait(ctx, before+1); err != nil {
			return err
		}
		takeover = time.Since(killed).Round(10 * time.Millisecond)
	}
	if err := <-writing; err != nil {
		return err
	}
	if err := counts.wait(ctx, n); err != nil && !errors.Is(err, errSilence) {
		return err
	}
	if series == "backlog" {
		begun = counts.began
	}
	took := counts.last.Sub(begun)
	var written []int64
	if err := pool.QueryRow(ctx, `SELECT array_agg(event_id) FROM tasker.events WHERE name LIKE 'step.%'`).Scan(&written); err != nil {
		return err
	}
	lost, repeated := counts.compare(written)
	fmt.Printf("%-8s %9d %9.2f %8.0f %9s %6d %9d\n", series, len(written), took.Seconds(), float64(len(written))/took.Seconds(), takeover, lost, repeated)
	if allowed := map[string]int{"killed": window}[series]; lost > 0 || repeated > allowed {
		return fmt.Errorf("%d events lost, %d repeated", lost, repeated)
	}
	return nil
}

// write lets the writers write n events together.
func write(ctx context.Context, pool *pgxpool.Pool, n int) error {
	errs := make(chan error, writers)
	for w := range writers {
		go func() {
			for i := range n / writers / batch {
				if _, err := pool.Exec(ctx, writeSQL, (w*7919+i)*batch%100_000); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	var all error
	for range writers {
		all = errors.Join(all, <-errs)
	}
	return all
}

var errSilence = errors.New("no events any more")

// tally counts what subscribers say that they have handled.
type tally struct {
	mu              sync.Mutex
	times           []uint8 // by event id: how often it was handled
	count, distinct int
	began, last     time.Time
	at              chan struct{}
}

func (t *tally) read(from io.Reader) {
	chunk := make([]byte, 1<<16)
	rest := 0
	for {
		n, err := from.Read(chunk[rest:])
		if err != nil {
			return
		}
		n += rest
		rest = n % 8
		t.add(chunk[:n-rest])
		copy(chunk, chunk[n-rest:n])
		select {
		case t.at <- struct{}{}:
		default:
		}
	}
}

func (t *tally) add(ids []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = time.Now()
	if t.count == 0 {
		t.began = t.last
	}
	for ; len(ids) > 0; ids = ids[8:] {
		id := int(binary.NativeEndian.Uint64(ids))
		if id >= len(t.times) {
			t.times = append(t.times, make([]uint8, id+1<<16-len(t.times))...)
		}
		if t.times[id] == 0 {
			t.distinct++
		}
		t.times[id]++
		t.count++
	}
}

// wait returns when so many different events were handled.
func (t *tally) wait(ctx context.Context, n int) error {
	for t.total() < n {
		select {
		case <-t.at:
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(silence):
			return errSilence
		}
	}
	return nil
}

func (t *tally) total() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.distinct
}

func (t *tally) compare(written []int64) (lost, repeated int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, id := range written {
		if int(id) >= len(t.times) || t.times[id] == 0 {
			lost++
		}
	}
	return lost, t.count - t.distinct
}

// subscriber is a Ruby process.
type subscriber struct {
	cmd  *exec.Cmd
	read chan struct{}
}

func subscribe(ctx context.Context, url string, sync bool, counts *tally) (*subscriber, error) {
	lib, err := filepath.Abs("ruby_bridge/lib")
	if err != nil {
		return nil, err
	}
	s := &subscriber{cmd: exec.CommandContext(ctx, "ruby", "bench/events/subscriber.rb"), read: make(chan struct{})}
	s.cmd.Env = append(os.Environ(), "RUBYLIB="+lib, "TASKER_DATABASE_URL="+url, "NAME=bench")
	if sync {
		s.cmd.Env = append(s.cmd.Env, "SYNC=1")
	}
	s.cmd.Stderr = os.Stderr
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(s.read)
		counts.read(out)
	}()
	return s, nil
}

// end kills the process, and returns when all that it had said is counted.
func (s *subscriber) end() {
	_ = s.cmd.Process.Kill() // it may have ended already
	<-s.read
	_ = s.cmd.Wait() // "signal: killed"
}
