// Command bench compares engines: the same workloads, in one run, taking turns,
// on one Postgres with fsync and synchronous_commit on. Steps are no-ops that
// return a result of 100 bytes. Run it from the root of the repository, on a
// quiet machine:
//
//	go run ./bench                              # all engines, all workloads
//	go run ./bench -engines tasker -only w1,w4  # some of them
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/bench/contest"
	"github.com/taskerhq/tasker/bench/stage"
)

// A workload is an order, and what its figure is.
type workload struct {
	name, title, unit string
	order             contest.Order
}

var workloads = []workload{
	{"w1", "500 tasks of 10 steps in a row", "steps/s", contest.Order{Shape: contest.Chain, Size: 10, Tasks: 500}},
	{"w1i", "one task of 10 steps in a row, idle", "ms", contest.Order{Shape: contest.Chain, Size: 10, Tasks: 50, InTurn: true, Pause: 20 * time.Millisecond}},
	{"w2", "200 tasks of 1 step, then 20 side by side, then 1", "steps/s", contest.Order{Shape: contest.Fan, Size: 20, Tasks: 200}},
	{"w3", "1,000 diamonds of 4 steps", "tasks/s", contest.Order{Shape: contest.Diamond, Tasks: 1000}},
	{"w4", "one step, enqueue to completion, idle", "ms", contest.Order{Shape: contest.Single, Tasks: 200, InTurn: true, Pause: 10 * time.Millisecond}},
	{"w5", "one task of 1,000 steps in a row", "steps/s", contest.Order{Shape: contest.Chain, Size: 1000, Tasks: 1}},
}

// An engine is a program that serves contest's protocol.
type engine struct {
	name    string
	module  string // the folder of its module
	program string // its package there
}

var engines = []engine{
	{"tasker", ".", "./bench/tasker"},
}

func main() {
	rounds := flag.Int("rounds", 5, "runs of each workload by each engine")
	only := flag.String("only", "", "some of the workloads, such as w1,w4")
	who := flag.String("engines", "", "some of the engines, such as tasker")
	out := flag.String("json", "", "a file for all figures")
	top := flag.Int("statements", 0, "show so many of each engine's statements, those that took longest")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := compare(ctx, *rounds, choose(workloads, *only, func(w workload) string { return w.name }),
		choose(engines, *who, func(e engine) string { return e.name }), *out, *top)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// choose keeps those that are named in the list; all, when it is empty.
func choose[T any](all []T, list string, name func(T) string) []T {
	if list == "" {
		return all
	}
	named := strings.Split(list, ",")
	return slices.DeleteFunc(slices.Clone(all), func(x T) bool { return !slices.Contains(named, name(x)) })
}

// settings are those of the peers' measurements.
var settings = []string{"shared_buffers = '512MB'", "max_connections = 200", "shared_preload_libraries = 'pg_stat_statements'"}

func compare(ctx context.Context, rounds int, workloads []workload, engines []engine, out string, top int) (err error) {
	if len(workloads) == 0 || len(engines) == 0 {
		return errors.New("no such engine or workload")
	}
	s, err := stage.Open(ctx, settings...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	var contestants []*contest.Contestant
	defer func() {
		for _, c := range contestants {
			err = errors.Join(err, c.Close())
		}
	}()
	meters := map[string]*pgx.Conn{}
	for _, e := range engines {
		program := filepath.Join(s.Dir, e.name)
		build := exec.CommandContext(ctx, "go", "build", "-o", program, e.program)
		build.Dir = e.module
		if text, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", e.name, err, text)
		}
		url, err := s.Database(ctx, e.name)
		if err != nil {
			return err
		}
		conn, err := pgx.Connect(ctx, url)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
		if _, err := conn.Exec(ctx, `CREATE EXTENSION pg_stat_statements`); err != nil {
			return err
		}
		meters[e.name] = conn
		c, err := contest.Start(ctx, e.name, url, program)
		if err != nil {
			return err
		}
		contestants = append(contestants, c)
		s.Watch(e.name, c.PID())
	}
	var figures []figure
	done := 0 // steps, of all engines alike, since the warm-up
	for round := range rounds + 1 {
		if round == 1 {
			for _, meter := range meters {
				if _, err := meter.Exec(ctx, `SELECT pg_stat_statements_reset()`); err != nil {
					return err
				}
			}
		}
		for _, w := range workloads {
			for _, c := range contestants {
				order := w.order
				if round == 0 {
					order.Tasks = min(order.Tasks, 100) // warms up
				}
				f, err := measure(ctx, s, meters[c.Name], c, w, order)
				if err != nil {
					return err
				}
				fmt.Fprintf(os.Stderr, "%d/%d %-4s %-8s %s\n", round, rounds, w.name, c.Name, f)
				if round > 0 {
					figures = append(figures, f)
				}
			}
			if round > 0 {
				done += w.order.Tasks * w.order.StepsPerTask()
			}
		}
	}
	report(os.Stdout, workloads, engines, figures)
	for _, e := range engines {
		if err := statements(ctx, os.Stdout, meters[e.name], e, top, done); err != nil {
			return err
		}
	}
	if out == "" {
		return nil
	}
	text, err := json.MarshalIndent(figures, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(out, append(text, '\n'), 0o644)
}

// figure is what one run cost. Costs are per step.
type figure struct {
	Workload   string        `json:"workload"`
	Engine     string        `json:"engine"`
	Value      float64       `json:"value"` // in the workload's unit: a rate, or the median of the tasks in turn
	P99        float64       `json:"p99,omitempty"`
	EngineCPU  time.Duration `json:"engine_cpu"`
	Postgres   time.Duration `json:"postgres_cpu"`
	WAL        float64       `json:"wal_bytes"`
	Statements float64       `json:"statements"`
	Commits    float64       `json:"commits"` // that wrote
}

func (f figure) String() string {
	return fmt.Sprintf("%8.1f  p99 %6.1f  CPU µs %5.0f + %5.0f  WAL %5.0f B  statements %6.3f  commits %6.3f", f.Value, f.P99,
		micros(f.EngineCPU), micros(f.Postgres), f.WAL, f.Statements, f.Commits)
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func measure(ctx context.Context, s *stage.Stage, meter *pgx.Conn, c *contest.Contestant, w workload, o contest.Order) (figure, error) {
	before, err := read(ctx, s, meter)
	if err != nil {
		return figure{}, err
	}
	done, err := c.Run(o)
	if err != nil {
		return figure{}, err
	}
	after, err := read(ctx, s, meter)
	if err != nil {
		return figure{}, err
	}
	steps := float64(o.Tasks * o.StepsPerTask())
	f := figure{Workload: w.name, Engine: c.Name,
		EngineCPU:  time.Duration(float64(after.cpu[c.Name]-before.cpu[c.Name]) / steps),
		Postgres:   time.Duration(float64(after.cpu["postgres"]-before.cpu["postgres"]) / steps),
		WAL:        float64(after.wal-before.wal) / steps,
		Statements: float64(after.statements-before.statements) / steps,
		Commits:    float64(after.xids-before.xids) / steps,
	}
	switch w.unit {
	case "ms":
		f.Value = contest.Quantile(done.Each, 0.5).Seconds() * 1000
		f.P99 = contest.Quantile(done.Each, 0.99).Seconds() * 1000
	case "tasks/s":
		f.Value = float64(o.Tasks) / done.Took.Seconds()
	default:
		f.Value = steps / done.Took.Seconds()
	}
	return f, nil
}

// reading is what the meters show.
type reading struct {
	cpu                   map[string]time.Duration
	wal, xids, statements int64
}

func read(ctx context.Context, s *stage.Stage, meter *pgx.Conn) (reading, error) {
	r := reading{cpu: s.CPU()}
	err := meter.QueryRow(ctx, `SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint, pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
		(SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()))`).
		Scan(&r.wal, &r.xids, &r.statements)
	return r, err
}
