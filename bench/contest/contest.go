// Package contest is what the engines that are compared have in common: the
// workloads, the protocol between the program that measures and the program
// that runs an engine, and how both know that a workload is done.
//
// An engine is a process. It reads orders, JSON objects, one a line, from its
// standard input and answers each with one line on its standard output. It
// needs nothing from its surroundings but the database in DATABASE_URL. Where
// CPU_PROFILE names a file, it writes a CPU profile there.
package contest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Result is what every step returns: a JSON document of 100 bytes.
const Result = `{"status":"ok","reference":"0123456789abcdef0123456789abcdef","amount":"12345.67","currency":"EUR"}`

// Shape is the DAG of a workload's tasks.
type Shape string

// The shapes. A chain has Size steps in a row; a fan one step, then Size side by
// side, then one; a diamond four; a single one.
const (
	Chain   Shape = "chain"
	Fan     Shape = "fan"
	Diamond Shape = "diamond"
	Single  Shape = "single"
)

// Order is one workload to run.
type Order struct {
	Shape Shape `json:"shape"`
	Size  int   `json:"size,omitempty"`
	Tasks int   `json:"tasks"`
	// One after the other, each begun when the one before is complete: for
	// latency. Otherwise all are enqueued at once.
	InTurn bool          `json:"in_turn,omitempty"`
	Pause  time.Duration `json:"pause,omitempty"` // between two in turn
}

// StepsPerTask is how many steps a task of the shape has.
func (o Order) StepsPerTask() int {
	switch o.Shape {
	case Chain:
		return o.Size
	case Fan:
		return o.Size + 2
	case Diamond:
		return 4
	case Single:
		return 1
	}
	return 0
}

// Name names the order's DAG, for engines that register their workflows.
func (o Order) Name() string {
	if o.Size == 0 {
		return string(o.Shape)
	}
	return fmt.Sprintf("%s_%d", o.Shape, o.Size)
}

// YAML is the order's DAG as a template of ours. All steps are like step, which
// holds the fields of a step template but its name and dependencies.
func (o Order) YAML(namespace, step string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "name: %s\nnamespace_name: %s\nversion: 1.0.0\nmax_parallel_steps: 100\nstep_templates:\n", o.Name(), namespace)
	add := func(name string, after ...string) {
		fmt.Fprintf(&b, "  - {name: %s, depends_on_steps: [%s], %s}\n", name, strings.Join(after, ", "), step)
	}
	switch o.Shape {
	case Single:
		add("only")
	case Chain:
		add("s0")
		for i := 1; i < o.Size; i++ {
			add(fmt.Sprint("s", i), fmt.Sprint("s", i-1))
		}
	case Diamond:
		add("a")
		add("b", "a")
		add("c", "a")
		add("d", "b", "c")
	case Fan:
		add("first")
		var all []string
		for i := range o.Size {
			all = append(all, fmt.Sprint("s", i))
			add(all[i], "first")
		}
		add("last", all...)
	}
	return b.String()
}

// Done is the answer to an order.
type Done struct {
	// Took is from the first enqueue to the moment when the database showed the
	// last task complete; of tasks in turn, the time of each.
	Took    time.Duration   `json:"took"`
	Each    []time.Duration `json:"each,omitempty"`
	Problem string          `json:"problem,omitempty"`
}

// Engine runs orders.
type Engine interface {
	// Prepare does once what is not measured: registering a workflow, say.
	Prepare(ctx context.Context, o Order) error
	// Enqueue hands in n tasks.
	Enqueue(ctx context.Context, o Order, n int) error
	// Open asks the database whether tasks of the order are not complete: 0, when
	// all are. It is asked often. Its statement holds /* bench */: it is not counted as the engine's.
	Open(ctx context.Context, o Order) (int, error)
}

// Serve runs the orders on standard input until it is closed.
func Serve(start func(ctx context.Context, databaseURL string) (Engine, func() error, error)) {
	if err := serve(start); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(start func(ctx context.Context, databaseURL string) (Engine, func() error, error)) (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	engine, end, err := start(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	if name := os.Getenv("CPU_PROFILE"); name != "" {
		file, err := os.Create(name)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, file.Close()) }()
		if err := pprof.StartCPUProfile(file); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	prepared := map[string]bool{}
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var o Order
		if err := in.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		var done Done
		err := error(nil)
		if !prepared[o.Name()] {
			prepared[o.Name()] = true
			err = engine.Prepare(ctx, o)
		}
		if err == nil && o.Tasks > 0 {
			done, err = run(ctx, engine, o)
		}
		if err != nil {
			done.Problem = err.Error()
		}
		if err := out.Encode(done); err != nil {
			return err
		}
	}
}

func run(ctx context.Context, e Engine, o Order) (Done, error) {
	if !o.InTurn {
		begun := time.Now()
		if err := e.Enqueue(ctx, o, o.Tasks); err != nil {
			return Done{}, err
		}
		// Asking more often would be load of its own.
		err := await(ctx, e, o, 4*time.Millisecond)
		return Done{Took: time.Since(begun)}, err
	}
	var done Done
	all := time.Now()
	for range o.Tasks {
		begun := time.Now()
		if err := e.Enqueue(ctx, o, 1); err != nil {
			return done, err
		}
		if err := await(ctx, e, o, 300*time.Microsecond); err != nil {
			return done, err
		}
		done.Each = append(done.Each, time.Since(begun))
		time.Sleep(o.Pause)
	}
	done.Took = time.Since(all)
	return done, nil
}

// await asks the database until all is complete.
func await(ctx context.Context, e Engine, o Order, pause time.Duration) error {
	for {
		open, err := e.Open(ctx, o)
		if err != nil || open == 0 {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Contestant is an engine's process, as the program that measures sees it.
type Contestant struct {
	Name string
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
}

// Start starts an engine over the database.
func Start(ctx context.Context, name, databaseURL string, command ...string) (*Contestant, error) {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env, cmd.Stderr = append(os.Environ(), "DATABASE_URL="+databaseURL), os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return &Contestant{name, cmd, in, bufio.NewReader(out)}, nil
}

// PID is the engine's process.
func (c *Contestant) PID() int { return c.cmd.Process.Pid }

// Run carries out one order.
func (c *Contestant) Run(o Order) (Done, error) {
	if err := json.NewEncoder(c.in).Encode(o); err != nil {
		return Done{}, fmt.Errorf("%s: %w", c.Name, err)
	}
	line, err := c.out.ReadBytes('\n')
	if err != nil {
		return Done{}, fmt.Errorf("%s ended: %w", c.Name, err)
	}
	var done Done
	if err := json.Unmarshal(line, &done); err != nil {
		return Done{}, fmt.Errorf("%s answered %q: %w", c.Name, line, err)
	}
	if done.Problem != "" {
		return done, fmt.Errorf("%s: %s", c.Name, done.Problem)
	}
	return done, nil
}

// Close ends the engine, and says how it ended.
func (c *Contestant) Close() error {
	if err := c.in.Close(); err != nil {
		return err
	}
	if err := c.cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %w", c.Name, err)
	}
	return nil
}

// Quantile of the durations, which it sorts.
func Quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[min(int(q*float64(len(d))), len(d)-1)]
}
