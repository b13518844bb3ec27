// Command events measures how fast events get to a durable subscriber in one
// process, in Go and in Ruby, with everything that this takes: reading, parsing,
// calling the handler for each event, and moving the cursor in Postgres.
//
//   - backlog: the events are there before the subscriber starts
//   - live: it reads while four writers write
//   - killed: the same, with a kill -9 of the subscriber in the middle, or at
//     -kills random moments, and another one that takes over
//
// Writers write as workers do: 100 events in a transaction, each of a task and
// a step, a quarter of them with data. fsync and synchronous_commit are on. It
// fails when an event is lost, when one comes before an earlier one of its step, when
// more than the 1000 of a batch are repeated after a kill, or any without. Run it
// from the root of the repository, on a quiet machine:
//
//	go run ./bench/events
//	go run ./bench/events -to go -n 1000000 -kills 50
package main

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/bench/stage"
	"github.com/taskerhq/tasker/devstack"
	"github.com/taskerhq/tasker/events"
	"github.com/taskerhq/tasker/migrations"
	"github.com/taskerhq/tasker/store"
)

const (
	writers = 4
	batch   = 100
	window  = 1000             // events that may come again after a kill -9
	silence = 20 * time.Second // without an event: what is missing is lost
)

const prepareSQL = `
	SELECT tasker.register_template('bench', 'events', '1.0.0', '', '{}', 'events', 10, '[{"position": 0, "name": "only", "handler": "tasker.echo", "attempt_limit": 3}]');
	INSERT INTO tasker.tasks (namespace, name) SELECT 'bench', 'events' FROM generate_series(1, ` + "1000" + `)`

// Each writer has steps of its own: what happens to one is in an order.
const writeSQL = `
	INSERT INTO tasker.events (task_id, step_id, attempt, name, data)
	SELECT 1 + $2 + i % 250 * 4, 1 + $2 + i % 250 * 4, 1, CASE i % 2 WHEN 0 THEN 'step.handle' ELSE 'step.completed' END,
	       CASE WHEN i % 4 = 3 THEN '{"class": "Gateway::Busy", "message": "the gateway is busy", "retry_in_seconds": 2.5}'::jsonb END
	FROM generate_series($1::int, $1::int + 99) i ORDER BY i`

// trial is what is measured.
type trial struct {
	language string // of the subscriber
	series   string
	events   int
	kills    int
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "subscriber" {
		stage.Main("subscriber", subscriber)
		return
	}
	n := flag.Int("n", 300_000, "events per series")
	to := flag.String("to", "go,ruby", "languages of the subscriber")
	kills := flag.Int("kills", 1, "how often the subscriber is killed in the series of that name")
	flag.Parse()
	stage.Main("events", func(ctx context.Context) error {
		return measure(ctx, *n/batch/writers*batch*writers, strings.Split(*to, ","), *kills)
	})
}

func measure(ctx context.Context, n int, languages []string, kills int) (err error) {
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
	fmt.Printf("%-8s %-8s %9s %9s %8s %9s %6s %9s\n", "to", "series", "events", "seconds", "per s", "takeover", "lost", "repeated")
	for _, language := range languages {
		for _, t := range []trial{{language, "backlog", n, 0}, {language, "live", n, 0}, {language, "killed", n, kills}} {
			database := t.language + "_" + t.series
			if err := postgres.CreateDatabase(ctx, database); err != nil {
				return err
			}
			if err := run(ctx, postgres.URL(database), t); err != nil {
				return fmt.Errorf("%s, %s: %w", t.language, t.series, err)
			}
		}
	}
	return nil
}

func run(ctx context.Context, url string, t trial) error {
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
	if t.series == "backlog" {
		if err := write(ctx, pool, t.events); err != nil {
			return err
		}
	}
	counts := &tally{at: make(chan struct{}, 1)}
	reader, err := subscribe(ctx, url, t, counts)
	if err != nil {
		return err
	}
	defer func() { reader.end() }()
	begun := time.Now()
	writing := make(chan error, 1)
	go func() {
		if t.series == "backlog" {
			writing <- nil
			return
		}
		begun = time.Now()
		writing <- write(ctx, pool, t.events)
	}()
	var takeover time.Duration
	for k := range t.kills {
		if err := counts.wait(ctx, (2*k+1+rand.IntN(2))*t.events/(2*t.kills+1)); err != nil {
			return err
		}
		reader.end()
		killed, before := time.Now(), counts.total()
		if reader, err = subscribe(ctx, url, t, counts); err != nil {
			return err
		}
		if err := counts.wait(ctx, before+1); err != nil {
			return err
		}
		takeover = max(takeover, time.Since(killed).Round(10*time.Millisecond))
	}
	if err := <-writing; err != nil {
		return err
	}
	if err := counts.wait(ctx, t.events); err != nil && !errors.Is(err, errSilence) {
		return err
	}
	if t.series == "backlog" {
		begun = counts.began
	}
	took := counts.last.Sub(begun)
	var written, steps []int64
	if err := pool.QueryRow(ctx, `SELECT array_agg(event_id ORDER BY event_id), array_agg(step_id ORDER BY event_id) FROM tasker.events WHERE name LIKE 'step.%'`).Scan(&written, &steps); err != nil {
		return err
	}
	lost, repeated, early := counts.compare(written, steps)
	fmt.Printf("%-8s %-8s %9d %9.2f %8.0f %9s %6d %9d\n", t.language, t.series, len(written), took.Seconds(), float64(len(written))/took.Seconds(), takeover, lost, repeated)
	if lost > 0 || repeated > t.kills*window || early > 0 {
		return fmt.Errorf("%d events lost, %d repeated, %d before an earlier one of their step", lost, repeated, early)
	}
	return nil
}

// write lets the writers write n events together.
func write(ctx context.Context, pool *pgxpool.Pool, n int) error {
	errs := make(chan error, writers)
	for w := range writers {
		go func() {
			for i := range n / writers / batch {
				if _, err := pool.Exec(ctx, writeSQL, i*batch%100_000, w); err != nil {
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
	order           []int64 // of their first time
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
			t.order = append(t.order, int64(id))
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

// compare says how many were lost, came again, and came before an earlier one of
// their step. written is in order.
func (t *tally) compare(written, steps []int64) (lost, repeated, early int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	stepOf := make(map[int64]int64, len(written))
	for i, id := range written {
		stepOf[id] = steps[i]
		if int(id) >= len(t.times) || t.times[id] == 0 {
			lost++
		}
	}
	last := map[int64]int64{}
	for _, id := range t.order {
		step := stepOf[id]
		if id < last[step] {
			early++
		}
		last[step] = max(last[step], id)
	}
	return lost, t.count - t.distinct, early
}

// process is one that reads.
type process struct {
	cmd  *exec.Cmd
	read chan struct{}
}

func subscribe(ctx context.Context, url string, t trial, counts *tally) (*process, error) {
	lib, err := filepath.Abs("ruby_bridge/lib")
	if err != nil {
		return nil, err
	}
	p := &process{read: make(chan struct{})}
	switch t.language {
	case "ruby":
		p.cmd = exec.CommandContext(ctx, "ruby", "bench/events/subscriber.rb")
	case "go":
		p.cmd = exec.CommandContext(ctx, os.Args[0], "subscriber")
	default:
		return nil, fmt.Errorf("-to knows go and ruby, not %q", t.language)
	}
	p.cmd.Env = append(os.Environ(), "RUBYLIB="+lib, "TASKER_DATABASE_URL="+url, "NAME=bench")
	if t.kills > 0 {
		p.cmd.Env = append(p.cmd.Env, "SYNC=1")
	}
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.read)
		counts.read(out)
	}()
	return p, nil
}

// subscriber is the process that reads in Go. It writes the id of each event that
// it has handled, at once where SYNC says so.
func subscriber(ctx context.Context) error {
	pool, err := pgxpool.New(ctx, os.Getenv("TASKER_DATABASE_URL"))
	if err != nil {
		return err
	}
	defer pool.Close()
	var handled []byte
	most := 100
	if os.Getenv("SYNC") != "" {
		most = 1
	}
	return events.Subscribe(ctx, store.New(pool), events.Subscription{
		Name: os.Getenv("NAME"), Patterns: []string{"step.*"}, FromBeginning: true,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Handle: func(_ context.Context, e *tasker.Event) error {
			handled = binary.NativeEndian.AppendUint64(handled, uint64(e.ID))
			if len(handled) < 8*most {
				return nil
			}
			_, err := os.Stdout.Write(handled)
			handled = handled[:0]
			return err
		},
	})
}

// end kills the process, and returns when all that it had said is counted.
func (p *process) end() {
	_ = p.cmd.Process.Kill() // it may have ended already
	<-p.read
	_ = p.cmd.Wait() // "signal: killed"
}
