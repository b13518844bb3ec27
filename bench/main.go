// Command bench compares engines: the same workloads, in one run, taking turns,
// on one Postgres with fsync and synchronous_commit on. Steps are no-ops that
// return a result of 100 bytes. A run has the machine to itself: its engine is
// started for it, warmed up and stopped, and it waits until nobody else uses the
// processors. Run it from the root of the repository:
//
//	go run ./bench                              # tasker, dbos and river_chain
//	go run ./bench -engines all                 # and the peers' other settings
//	go run ./bench -engines tasker -only w1,w4  # some of them
//	go run ./bench -json FILE -update           # keeps the figures, rewrites bench/README.md
//	go run ./bench -from FILE -update           # rewrites it from figures that were kept
//
// An engine is a program that serves the protocol of bench/contest. Those of
// peers are modules of their own: nobody else needs what they import.
package main

import (
	"context"
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

// An engine is a program that serves contest's protocol, and its settings.
type engine struct {
	name    string
	about   string
	module  string // the folder of its module
	program string // its package there
	flags   []string
	asked   bool     // runs only when it is named, or all are
	inTurn  int      // at most so many tasks in turn, where each takes long; 0: all
	not     []string // workloads that say nothing about it, or never end
}

var engines = []engine{
	{name: "tasker", about: "this repository: every step is handed over through the database; default settings", module: ".", program: "./bench/tasker"},
	{name: "dbos", about: "DBOS Transact for Go 1.8.0, a workflow per task: its process runs it and checkpoints each step, no step is handed over; from a queue that is polled each 10 ms, 100 workers, 20 connections",
		module: "bench/dbos", program: ".", flags: []string{"-mode", "queue"}},
	{name: "dbos_direct", about: "the same without the queue: 100 goroutines of the caller run the workflows",
		module: "bench/dbos", program: ".", flags: []string{"-mode", "direct"}, asked: true},
	{name: "dbos_default", about: "the same with the queue's default poll of one second",
		module: "bench/dbos", program: ".", flags: []string{"-mode", "default"}, asked: true, inTurn: 10},
	{name: "river_chain", about: "River 0.51.1 with a graph by hand: one transaction keeps the result, completes the job and inserts what is next; 100 workers, 20 connections, fetch cooldown 1 ms, poll 10 ms",
		module: "bench/river", program: ".", flags: []string{"-graph"}},
	{name: "river_chain_default", about: "the same with River's default fetch cooldown of 100 ms and poll of one second",
		module: "bench/river", program: ".", flags: []string{"-graph", "-default"}, asked: true, inTurn: 10, not: []string{"w5"}},
	{name: "river", about: "River 0.51.1 alone: as many jobs as there are steps, independent of each other, with recorded output; 1,000 workers, cooldown 1 ms, poll 10 ms. No workflow: the bound of what River can do",
		module: "bench/river", program: ".", asked: true, inTurn: 40, not: []string{"w1i", "w5"}},
}

func (e engine) runs(w workload) bool { return !slices.Contains(e.not, w.name) }

// order is the workload's, cut to what this engine can do in reasonable time.
func (e engine) order(w workload) contest.Order {
	o := w.order
	if o.InTurn && e.inTurn > 0 {
		o.Tasks = min(o.Tasks, e.inTurn)
	}
	return o
}

func main() {
	var b bench
	flag.IntVar(&b.rounds, "rounds", 5, "runs of each workload by each engine")
	only := flag.String("only", "", "some of the workloads, such as w1,w4")
	who := flag.String("engines", "", "some of the engines, such as tasker,dbos, or all; default: tasker, dbos and river_chain")
	flag.Float64Var(&b.quiet, "quiet", 0.35, "how many processors others may use during a run; 0: no matter")
	flag.DurationVar(&b.wait, "wait", 5*time.Minute, "the longest wait for a quiet machine, before each run")
	out := flag.String("json", "", "a file for all figures")
	from := flag.String("from", "", "a file of figures: reports them and runs nothing")
	update := flag.Bool("update", false, "writes the tables in bench/README.md, and bench/charts, anew")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, &b, *who, *only, *from, *out, *update)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, b *bench, who, only, from, out string, update bool) (err error) {
	if b.workloads, err = choose("workload", workloads, only, func(w workload) string { return w.name }); err != nil {
		return err
	}
	switch who {
	case "":
		b.engines = slices.DeleteFunc(slices.Clone(engines), func(e engine) bool { return e.asked })
	case "all":
		b.engines = engines
	default:
		if b.engines, err = choose("engine", engines, who, func(e engine) string { return e.name }); err != nil {
			return err
		}
	}
	var r *results
	if from != "" {
		r, err = readResults(from)
	} else {
		r, err = b.compare(ctx)
	}
	if err != nil {
		return err
	}
	if out != "" {
		if err := r.write(out); err != nil {
			return err
		}
	}
	fmt.Print(r.markdown(""))
	if update {
		return r.update("bench/README.md", "charts")
	}
	return nil
}

// choose keeps those that are named in the list, in their own order; all, when
// it is empty.
func choose[T any](kind string, all []T, list string, name func(T) string) ([]T, error) {
	if list == "" {
		return all, nil
	}
	var known, chosen []string
	for _, x := range all {
		known = append(known, name(x))
	}
	for _, n := range strings.Split(list, ",") {
		if !slices.Contains(known, n) {
			return nil, fmt.Errorf("no %s %q: there are %s", kind, n, strings.Join(known, ", "))
		}
		chosen = append(chosen, n)
	}
	return slices.DeleteFunc(slices.Clone(all), func(x T) bool { return !slices.Contains(chosen, name(x)) }), nil
}

// settings of Postgres; the rest is at its defaults.
var settings = []string{"shared_buffers = '512MB'", "max_connections = 200", "shared_preload_libraries = 'pg_stat_statements'"}

// bench is a comparison under way.
type bench struct {
	workloads []workload
	engines   []engine
	rounds    int
	quiet     float64
	wait      time.Duration

	stage    *stage.Stage
	programs map[string]string // of engines, built
	urls     map[string]string // of engines' databases
	meters   map[string]*pgx.Conn
}

// tries is how often a run is made while others use the machine.
const tries = 3

func (b *bench) compare(ctx context.Context) (_ *results, err error) {
	if b.stage, err = stage.Open(ctx, settings...); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.stage.Close()) }()
	b.programs, b.urls, b.meters = map[string]string{}, map[string]string{}, map[string]*pgx.Conn{}
	defer func() {
		for _, m := range b.meters {
			err = errors.Join(err, m.Close(context.WithoutCancel(ctx)))
		}
	}()
	for _, e := range b.engines {
		if err := b.prepare(ctx, e); err != nil {
			return nil, err
		}
	}
	r, err := b.describe(ctx)
	if err != nil {
		return nil, err
	}
	for round := range b.rounds {
		for _, w := range b.workloads {
			for i := range b.engines {
				e := b.engines[(i+round)%len(b.engines)] // nobody is always the first
				if !e.runs(w) {
					continue
				}
				f, err := b.run(ctx, e, w)
				if err != nil {
					return nil, err
				}
				f.Round = round + 1
				fmt.Fprintf(os.Stderr, "%d/%d %-4s %-12s %s\n", f.Round, b.rounds, w.name, e.name, f)
				r.Figures = append(r.Figures, f)
			}
		}
	}
	return r, nil
}

// prepare builds an engine's program and makes its database.
func (b *bench) prepare(ctx context.Context, e engine) error {
	program := filepath.Join(b.stage.Dir, e.name)
	build := exec.CommandContext(ctx, "go", "build", "-o", program, e.program)
	build.Dir = e.module
	if text, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", e.name, err, text)
	}
	url, err := b.stage.Database(ctx, e.name)
	if err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	b.programs[e.name], b.urls[e.name], b.meters[e.name] = program, url, conn
	_, err = conn.Exec(ctx, `CREATE EXTENSION pg_stat_statements`)
	return err
}

// run measures one workload by one engine, and again while others disturb it.
func (b *bench) run(ctx context.Context, e engine, w workload) (figure, error) {
	var best figure
	for try := range tries {
		if b.quiet > 0 {
			if err := awaitQuiet(ctx, b.quiet, b.wait); err != nil {
				return best, err
			}
		}
		f, err := b.once(ctx, e, w)
		if err != nil {
			return best, err
		}
		if try == 0 || f.Others < best.Others {
			best = f
		}
		best.Dirty = b.quiet > 0 && best.Others > b.quiet
		if !best.Dirty {
			break
		}
	}
	return best, nil
}

// once starts the engine, warms it up, measures and stops it.
func (b *bench) once(ctx context.Context, e engine, w workload) (f figure, err error) {
	c, err := contest.Start(ctx, e.name, b.urls[e.name], append([]string{b.programs[e.name]}, e.flags...)...)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	b.stage.Watch(e.name, c.PID())
	order := e.order(w)
	warm, register := order, order
	warm.InTurn, warm.Tasks, warm.Size = false, min(warm.Tasks*10, 20), min(warm.Size, 20)
	register.Tasks = 0
	for _, o := range []contest.Order{warm, register} {
		if _, err := c.Run(o); err != nil {
			return f, err
		}
	}
	return measure(ctx, b.stage, b.meters[e.name], c, w, order)
}

// figure is what one run cost. Costs are per step.
type figure struct {
	Workload   string        `json:"workload"`
	Engine     string        `json:"engine"`
	Round      int           `json:"round"`
	Value      float64       `json:"value"` // in the workload's unit: a rate, or the median of the tasks in turn
	P99        float64       `json:"p99,omitempty"`
	EngineCPU  time.Duration `json:"engine_cpu_ns"`
	Postgres   time.Duration `json:"postgres_cpu_ns"`
	WAL        float64       `json:"wal_bytes"`
	Statements float64       `json:"statements"`
	Commits    float64       `json:"commits"` // that wrote
	Others     float64       `json:"others"`  // processors that others used meanwhile
	Dirty      bool          `json:"dirty,omitempty"`
}

func (f figure) String() string {
	dirty := ""
	if f.Dirty {
		dirty = "  DISTURBED"
	}
	return fmt.Sprintf("%8.1f  p99 %6.1f  CPU µs %5.0f + %5.0f  WAL %5.0f B  statements %6.3f  commits %6.3f  others %4.2f%s", f.Value, f.P99,
		micros(f.EngineCPU), micros(f.Postgres), f.WAL, f.Statements, f.Commits, f.Others, dirty)
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
		Others:     othersBetween(before, after, c.Name),
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
	at                    time.Time
	machine, own          time.Duration
	cpu                   map[string]time.Duration
	wal, xids, statements int64
}

func read(ctx context.Context, s *stage.Stage, meter *pgx.Conn) (reading, error) {
	r := reading{}
	// The questions of the engines' Open, and this one, are marked: they are no
	// work of the engine.
	err := meter.QueryRow(ctx, `SELECT /* bench */ (pg_current_wal_insert_lsn() - '0/0')::bigint, pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
		(SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND query NOT LIKE '%/* bench */%')`).
		Scan(&r.wal, &r.xids, &r.statements)
	if err != nil {
		return r, err
	}
	r.at, r.cpu, r.own = time.Now(), s.CPU(), ownTime()
	r.machine, err = machineTime()
	return r, err
}
