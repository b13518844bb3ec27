// Command bridge compares steps whose handlers run in Sidekiq with native
// Sidekiq jobs that do the same work and record nothing. Both run in the same
// Sidekiq process (concurrency 10), taking turns, so that a noisy minute falls on
// both. A step here is all that tasker does for it: the task is inserted, its
// steps are claimed, started behind the fence, run, reported, and the task is
// completed; fsync and synchronous_commit are on. Run it from the root of the
// repository, on a quiet machine:
//
//	go run ./bench/bridge
//	go run ./bench/bridge -only noop -rounds 3
//
// With -idle, the tables are empty for a moment before each round and are analyzed then,
// as autovacuum does in an idle minute; it does not look again during the round, nor does
// it in a flood's first minute.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/taskerhq/tasker/bench/stage"
)

const (
	chain = 10 // steps one after the other
	fan   = 20 // steps side by side
)

// A series is one kind of work, by each of the ways to do it.
type series struct {
	name  string
	sleep float64 // milliseconds that a handler sleeps
	steps int
}

var all = []series{{"noop", 0, 20_000}, {"1 ms", 1, 20_000}, {"10 ms", 10, 6_000}}

var ways = []string{"native", "chains", "fans"}

func main() {
	rounds := flag.Int("rounds", 7, "runs of each kind of work by each way")
	only := flag.String("only", "", "the one kind of work: noop, '1 ms' or '10 ms'; or calls")
	by := flag.String("ways", strings.Join(ways, ","), "which ways")
	functions := flag.Bool("functions", false, "show calls and time of the SQL functions too (which costs some)")
	steps := flag.Int("steps", 0, "steps per run; 0: 20,000, and 6,000 of 10 ms")
	idle := flag.Bool("idle", false, "before each round, analyze the tables while they are empty")
	flag.Parse()
	ways = strings.Split(*by, ",")
	stage.Main("bridge", func(ctx context.Context) error { return measure(ctx, *rounds, *only, *steps, *functions, *idle) })
}

func measure(ctx context.Context, rounds int, only string, steps int, functions, idle bool) (err error) {
	s, err := stage.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	for _, x := range all {
		for _, way := range []string{"chains", "fans"} {
			if err := s.Register(ctx, way, template(way, x)); err != nil {
				return err
			}
		}
	}
	if idle {
		if _, err := s.Pool.Exec(ctx, `ALTER SYSTEM SET autovacuum = off`); err != nil {
			return err
		}
		if _, err := s.Pool.Exec(ctx, `SELECT pg_reload_conf()`); err != nil {
			return err
		}
	}
	if functions {
		if err := s.TrackFunctions(ctx); err != nil {
			return err
		}
	}
	if only == "" || only == "calls" {
		if err := calls(ctx, s); err != nil {
			return err
		}
	}
	if only == "calls" {
		return nil
	}
	if err := s.Worker(ctx); err != nil {
		return err
	}
	if err := s.Sidekiq(ctx, "./bench/bridge/boot.rb", 10, "default", "native"); err != nil {
		return err
	}
	fmt.Printf("%-6s %-7s %8s %8s %8s %7s   %s\n", "work", "way", "min", "median", "max", "ratio", "CPU per step, µs (median)")
	for _, x := range all {
		if only != "" && x.name != only {
			continue
		}
		if steps > 0 {
			x.steps = steps
		}
		if err := compare(ctx, s, x, rounds, idle); err != nil {
			return err
		}
	}
	return nil
}

// calls measures the gem's calls while nothing else goes on: no worker runs yet.
func calls(ctx context.Context, s *stage.Stage) error {
	yaml := "name: idle\nnamespace_name: bench\nstep_templates:\n  - {name: a, handler_class: Work}\n" +
		"  - {name: b, handler_class: Work, depends_on_step: a}\n  - {name: c, handler_class: Work, depends_on_step: a}\n  - {name: d, handler_class: Work, depends_on_steps: [b, c]}\n"
	if err := s.Register(ctx, "idle", yaml); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "ruby", "bench/bridge/calls.rb", "2000")
	cmd.Env, cmd.Stderr = s.Env, os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("calls.rb: %w", err)
	}
	var measured map[string]struct{ Median, P99, Max float64 }
	if err := json.Unmarshal(out, &measured); err != nil {
		return fmt.Errorf("calls.rb: %w", err)
	}
	fmt.Printf("%-34s %8s %8s %8s\n", "call, ms, idle (a task of 4 steps)", "median", "p99", "max")
	for _, name := range slices.Sorted(maps.Keys(measured)) {
		m := measured[name]
		fmt.Printf("%-34s %8.3f %8.3f %8.3f\n", name, m.Median, m.P99, m.Max)
	}
	fmt.Println()
	_, err = s.Pool.Exec(ctx, `SELECT tasker.cancel_task(task_id) FROM tasker.tasks`) // none is left for the worker
	return err
}

func template(way string, x series) string {
	var yaml strings.Builder
	fmt.Fprintf(&yaml, "name: %s_%g\nnamespace_name: bench\nmax_parallel_steps: %d\nstep_templates:\n", way, x.sleep, fan)
	for i := range map[string]int{"chains": chain, "fans": fan}[way] {
		fmt.Fprintf(&yaml, "  - {name: s%d, handler_class: Work, handler_config: {seconds: %g}", i, x.sleep/1000)
		if way == "chains" && i > 0 {
			fmt.Fprintf(&yaml, ", depends_on_step: s%d", i-1)
		}
		yaml.WriteString("}\n")
	}
	return yaml.String()
}

// run is one run: how long it took, and the CPU that each process used.
type run struct {
	took time.Duration
	cpu  map[string]time.Duration
}

func compare(ctx context.Context, s *stage.Stage, x series, rounds int, idle bool) error {
	runs := map[string][]run{}
	for round := range rounds + 1 {
		for _, way := range ways {
			if idle {
				if err := rest(ctx, s); err != nil {
					return err
				}
			}
			before, begun := s.CPU(), time.Now()
			calls, err := s.Functions(ctx)
			if err != nil {
				return err
			}
			if way == "native" {
				err = native(ctx, s, x)
			} else {
				err = tasks(ctx, s, x, way)
			}
			if err != nil {
				return err
			}
			r := run{took: time.Since(begun), cpu: s.CPU()}
			after, err := s.Functions(ctx)
			if err != nil {
				return err
			}
			for name, f := range after {
				if n := f.Calls - calls[name].Calls; n > 0 {
					own := f.Own - calls[name].Own
					fmt.Fprintf(os.Stderr, "%-28s %7d calls, %6.3f ms each, %6.1f µs per step\n", name, n, own.Seconds()*1e3/float64(n), own.Seconds()*1e6/float64(x.steps))
				}
			}
			for name := range r.cpu {
				r.cpu[name] -= before[name]
			}
			if round > 0 { // the first one warms up
				runs[way] = append(runs[way], r)
			}
			fmt.Fprintf(os.Stderr, "\r%s, round %d of %d: %-7s %6.0f/s ", x.name, round, rounds, way, float64(x.steps)/r.took.Seconds())
		}
	}
	fmt.Fprint(os.Stderr, "\r")
	for _, way := range ways {
		rate := func(r run) float64 { return float64(x.steps) / r.took.Seconds() }
		rates, ratios := []float64{}, []float64{}
		cpu := map[string][]time.Duration{}
		for i, r := range runs[way] {
			rates = append(rates, rate(r))
			if native := runs["native"]; native != nil {
				ratios = append(ratios, rate(r)/rate(native[i])) // of neighbours in time
			} else {
				ratios = append(ratios, math.NaN())
			}
			for name, d := range r.cpu {
				cpu[name] = append(cpu[name], d/time.Duration(x.steps))
			}
		}
		for i, collapsed := range stage.Collapsed(rates) {
			if collapsed {
				fmt.Printf("%-6s %-7s round %d collapsed: %.0f steps/s, the best round has %.0f\n", x.name, way, i+1, rates[i], slices.Max(rates))
			}
		}
		speed, ratio := stage.SpreadOf(rates), stage.SpreadOf(ratios)
		fmt.Printf("%-6s %-7s %8.0f %8.0f %8.0f %7.2f  ", x.name, way, speed.Least, speed.Median, speed.Most, ratio.Median)
		for _, name := range []string{"sidekiq", "worker", "postgres"} {
			slices.Sort(cpu[name])
			fmt.Printf(" %s %d", name, cpu[name][len(cpu[name])/2].Microseconds())
		}
		fmt.Printf("   (ratio %.2f–%.2f)\n", ratio.Least, ratio.Most)
	}
	return nil
}

// rest waits until no attempt is out and no job waits, and has Postgres look at that.
func rest(ctx context.Context, s *stage.Stage) error {
	if err := wait(ctx, func() (done bool, err error) {
		err = s.Pool.QueryRow(ctx, `SELECT NOT EXISTS (SELECT FROM tasker.dispatches) AND NOT EXISTS (SELECT FROM tasker.river_job WHERE state = 'available')`).Scan(&done)
		return done, err
	}); err != nil {
		return err
	}
	_, err := s.Pool.Exec(ctx, `ANALYZE tasker.dispatches, tasker.river_job`)
	return err
}

// native pushes jobs as Sidekiq's push_bulk does, and waits until none is left
// in the queue. The last ten may still run then: that is in its favour.
func native(ctx context.Context, s *stage.Stage, x series) error {
	for done := 0; done < x.steps; {
		n := min(1000, x.steps-done)
		jobs := make([]any, n)
		for i := range jobs {
			at := float64(time.Now().UnixMicro()) / 1e6
			jobs[i] = fmt.Sprintf(`{"class":"Native","args":[%g],"queue":"native","jid":"%024x","retry":false,"created_at":%.6f,"enqueued_at":%.6f}`,
				x.sleep/1000, done+i, at, at)
		}
		if _, err := s.Redis.TxPipelined(ctx, func(p redis.Pipeliner) error {
			p.SAdd(ctx, "queues", "native")
			p.LPush(ctx, "queue:native", jobs...)
			return nil
		}); err != nil {
			return fmt.Errorf("push: %w", err)
		}
		done += n
	}
	return wait(ctx, func() (bool, error) {
		n, err := s.Redis.LLen(ctx, "queue:native").Result()
		return n == 0, err
	})
}

// tasks inserts the tasks by one statement and waits for the last of them.
func tasks(ctx context.Context, s *stage.Stage, x series, way string) error {
	each := map[string]int{"chains": chain, "fans": fan}[way]
	if _, err := s.Pool.Exec(ctx, `INSERT INTO tasker.tasks (namespace, name) SELECT 'bench', $1 FROM generate_series(1, $2)`,
		fmt.Sprintf("%s_%g", way, x.sleep), x.steps/each); err != nil {
		return fmt.Errorf("enqueue: %w", err)
	}
	if err := wait(ctx, func() (done bool, err error) {
		err = s.Pool.QueryRow(ctx, `SELECT NOT EXISTS (SELECT FROM tasker.tasks WHERE state IN ('pending', 'in_progress'))`).Scan(&done)
		return done, err
	}); err != nil {
		return err
	}
	var failed int
	err := s.Pool.QueryRow(ctx, `SELECT count(*) FROM tasker.tasks WHERE name <> 'idle' AND state <> 'complete'`).Scan(&failed)
	if err == nil && failed > 0 {
		err = fmt.Errorf("%d tasks did not complete", failed)
	}
	return err
}

func wait(ctx context.Context, done func() (bool, error)) error {
	for {
		ok, err := done()
		if err != nil || ok {
			return err
		}
		select {
		case <-time.After(3 * time.Millisecond): // asking more often would be load of its own
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
