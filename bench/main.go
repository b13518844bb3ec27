// Command bench compares engines: the same workloads, in one run, taking turns,
// on one Postgres with fsync and synchronous_commit on. Steps are no-ops that
// return a result of 100 bytes. A run has the machine to itself: its engine is
// started for it, warmed up and stopped, and it waits until nobody else uses the
// processors. Run it from the root of the repository:
//
//	go run ./bench                              # tasker, dbos and river_chain
//	go run ./bench -engines all                 # and the peers' other settings
//	go run ./bench -engines tasker -only w1,w4  # some of them
//	go run ./bench -only own                    # tasker alone: size, processes, history, idleness (30 minutes)
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
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/bench/contest"
	"github.com/taskerhq/tasker/bench/stage"
)

// A workload is an order, and what its figure is.
type workload struct {
	name, title, unit string
	order             contest.Order

	// Of the questions about tasker alone (own.go).
	own      bool // runs only when it is named
	helpers  int  // further processes of the engine
	finished bool // the tables hold many finished tasks before
}

var workloads = []workload{
	{name: "w1", title: "500 tasks of 10 steps in a row", unit: "steps/s", order: contest.Order{Shape: contest.Chain, Size: 10, Tasks: 500}},
	{name: "w1i", title: "one task of 10 steps in a row, idle", unit: "ms", order: contest.Order{Shape: contest.Chain, Size: 10, Tasks: 50, InTurn: true, Pause: 20 * time.Millisecond}},
	{name: "w2", title: "200 tasks of 1 step, then 20 side by side, then 1", unit: "steps/s", order: contest.Order{Shape: contest.Fan, Size: 20, Tasks: 200}},
	{name: "w3", title: "1,000 diamonds of 4 steps", unit: "tasks/s", order: contest.Order{Shape: contest.Diamond, Tasks: 1000}},
	{name: "w4", title: "one step, enqueue to completion, idle", unit: "ms", order: contest.Order{Shape: contest.Single, Tasks: 200, InTurn: true, Pause: 10 * time.Millisecond}},
	{name: "w5", title: "one task of 1,000 steps in a row", unit: "steps/s", order: contest.Order{Shape: contest.Chain, Size: 1000, Tasks: 1}},
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

func (e engine) runs(w workload) bool {
	return !slices.Contains(e.not, w.name) && (e.name == "tasker" || !w.own)
}

// database is the name of the one that the engine has for the workload.
func (e engine) database(w workload) string {
	if w.finished {
		return e.name + "_" + w.name
	}
	return e.name
}

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
	only := flag.String("only", "", "some of the workloads, such as w1,w4, or own: the questions about tasker alone; default: those that all engines run")
	who := flag.String("engines", "", "some of the engines, such as tasker,dbos, or all; default: tasker, dbos and river_chain")
	flag.Float64Var(&b.quiet, "quiet", 0.35, "how many processors others may use during a run; 0: no matter")
	flag.IntVar(&b.finished, "finished", 1_000_000, "finished tasks in the tables for w1_full")
	flag.IntVar(&b.parked, "parked", 100_000, "parked tasks for idle")
	flag.DurationVar(&b.hold, "hold", 10*time.Minute, "how long the snapshot is held for held")
	flag.DurationVar(&b.wait, "wait", 5*time.Minute, "the longest wait for a quiet machine, before each run")
	flag.IntVar(&b.statements, "statements", 0, "show so many of the statements that took Postgres longest, of each database")
	out := flag.String("json", "", "a file for all figures")
	from := flag.String("from", "", "a file of figures: reports them and runs nothing")
	update := flag.Bool("update", false, "writes the tables in bench/README.md, and bench/charts, anew")
	flag.Parse()
	stage.Main("bench", func(ctx context.Context) error { return run(ctx, &b, *who, *only, *from, *out, *update) })
}

func run(ctx context.Context, b *bench, who, only, from, out string, update bool) (err error) {
	all := slices.Concat(workloads, ownWorkloads)
	switch only {
	case "":
		b.workloads = workloads
	case "own":
		b.workloads = ownWorkloads
	default:
		if b.workloads, err = choose("workload", all, only, func(w workload) string { return w.name }); err != nil {
			return err
		}
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

// choose keeps those that are named in the list, in their own order.
func choose[T any](kind string, all []T, list string, name func(T) string) ([]T, error) {
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
	finished  int
	parked    int
	hold      time.Duration

	statements int

	stage    *stage.Stage
	programs map[string]string // of engines, built
	urls     map[string]string // of databases
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
	b.engines = slices.DeleteFunc(slices.Clone(b.engines), func(e engine) bool { return !slices.ContainsFunc(b.workloads, e.runs) })
	if len(b.engines) == 0 {
		return nil, errors.New("none of the engines runs any of the workloads")
	}
	for _, e := range b.engines {
		if err := b.build(ctx, e); err != nil {
			return nil, err
		}
		for _, w := range b.workloads {
			if err := b.prepare(ctx, e, w); err != nil {
				return nil, err
			}
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
				if !e.runs(w) || w.unit == "" {
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
	for _, w := range b.workloads {
		if special := specials[w.name]; special != nil && b.programs["tasker"] != "" {
			if err := b.awaitQuiet(ctx); err != nil {
				return nil, err
			}
			notes, err := special(ctx, b)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", w.name, err)
			}
			r.Notes = append(r.Notes, notes...)
		}
	}
	return r, b.showStatements(ctx)
}

// showStatements prints what took Postgres longest, all runs and their warm-ups
// together.
func (b *bench) showStatements(ctx context.Context) error {
	if b.statements == 0 {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(b.meters)) {
		rows, err := b.meters[name].Query(ctx, `SELECT calls, total_exec_time, rows, wal_bytes::float8, left(regexp_replace(query, '\s+', ' ', 'g'), 110)
			FROM pg_stat_statements WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND query NOT LIKE '%pg_stat_statements%'
			ORDER BY total_exec_time DESC LIMIT $1`, b.statements)
		if err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "%s:\n%10s %10s %10s %10s %12s  statement\n", name, "calls", "ms", "µs a call", "rows", "WAL, KiB")
		var (
			calls, count int
			ms, wal      float64
			query        string
		)
		_, err = pgx.ForEachRow(rows, []any{&calls, &ms, &count, &wal, &query}, func() error {
			_, err := fmt.Fprintf(os.Stderr, "%10d %10.0f %10.0f %10d %12.0f  %s\n", calls, ms, ms*1000/float64(calls), count, wal/1024, query)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// build builds an engine's program.
func (b *bench) build(ctx context.Context, e engine) error {
	program := filepath.Join(b.stage.Dir, e.name)
	build := exec.CommandContext(ctx, "go", "build", "-o", program, e.program)
	build.Dir = e.module
	if text, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", e.name, err, text)
	}
	b.programs[e.name] = program
	return nil
}

// prepare makes the database that the engine has for the workload, once.
func (b *bench) prepare(ctx context.Context, e engine, w workload) error {
	name := e.database(w)
	if b.meters[name] != nil || !e.runs(w) || w.unit == "" {
		return nil
	}
	url, err := b.stage.Database(ctx, name)
	if err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	b.urls[name], b.meters[name] = url, conn
	if _, err = conn.Exec(ctx, `CREATE EXTENSION pg_stat_statements`); err != nil || !w.finished {
		return err
	}
	return b.fill(ctx, e, url, conn)
}

// run measures one workload by one engine, and again while others disturb it.
func (b *bench) run(ctx context.Context, e engine, w workload) (figure, error) {
	var best figure
	for try := range tries {
		if err := b.awaitQuiet(ctx); err != nil {
			return best, err
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
	url := b.urls[e.database(w)]
	c, err := b.start(ctx, e.name, e, url)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	for i := range w.helpers {
		helper, err := b.start(ctx, fmt.Sprint(e.name, helping, i), e, url)
		if err != nil {
			return f, err
		}
		defer func() { err = errors.Join(err, helper.Close()) }()
		if _, err := helper.Run(contest.Order{Shape: contest.Single}); err != nil { // answers when it works
			return f, err
		}
	}
	order := e.order(w)
	warm, register := order, order
	warm.InTurn, warm.Tasks, warm.Size = false, min(warm.Tasks*10, 500), min(warm.Size, 20)
	if order.InTurn {
		warm.Tasks = 20 // whatever an engine does afterwards for many would be seen in the latency of few
	}
	register.Tasks = 0
	for _, o := range []contest.Order{warm, register} {
		if _, err := c.Run(o); err != nil {
			return f, err
		}
	}
	return measure(ctx, b.stage, b.meters[e.database(w)], c, w, order)
}

// start starts a process of the engine, and watches it.
func (b *bench) start(ctx context.Context, name string, e engine, url string, flags ...string) (*contest.Contestant, error) {
	c, err := contest.Start(ctx, name, url, slices.Concat([]string{b.programs[e.name]}, e.flags, flags)...)
	if err == nil {
		b.stage.Watch(name, c.PID())
	}
	return c, err
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
		EngineCPU:  time.Duration(float64(after.engine(c.Name)-before.engine(c.Name)) / steps),
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

// helping is in the names of an engine's further processes.
const helping = " helper "

// engine is the time of all processes of an engine.
func (r reading) engine(name string) (used time.Duration) {
	for process, d := range r.cpu {
		if process == name || strings.HasPrefix(process, name+helping) {
			used += d
		}
	}
	return used
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
