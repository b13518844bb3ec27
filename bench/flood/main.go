// Command flood enqueues far more tasks than a worker can run, and watches how it
// copes: tasks of four steps in a row, a million at once, drained by one worker
// with its default settings. It prints how fast the work goes at the beginning
// and at the end, the worker's memory, and how long an urgent task takes that is
// enqueued every now and then meanwhile. Run it from the root of the repository,
// on a quiet machine:
//
//	go run ./bench/flood
//	go run ./bench/flood -overload 10m
//
// With -overload, tasks come for so long at ten times the rate that the worker
// carries, which is made small: 20 tasks at once, of steps that wait. Then a
// second worker with its default settings comes to help, and all is drained.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/taskerhq/tasker/bench/stage"
)

func main() {
	tasks := flag.Int("tasks", 1_000_000, "how many are enqueued at once")
	portion := flag.Int("portion", 10_000, "tasks of one INSERT")
	lasting := flag.Duration("overload", 0, "how long ten times too many tasks come; 0: -tasks at once instead")
	flag.Parse()
	stage.Main("flood", func(ctx context.Context) (err error) {
		s, err := stage.Open(ctx)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.Close()) }()
		if err := s.Register(ctx, "four", stage.FourSteps); err != nil {
			return err
		}
		if *lasting > 0 {
			return overload(ctx, s, *lasting)
		}
		return atOnce(ctx, s, *tasks, *portion)
	})
}

func atOnce(ctx context.Context, s *stage.Stage, tasks, portion int) error {
	began := time.Now()
	for done := 0; done < tasks; done += portion {
		if err := enqueue(ctx, s, "four", min(portion, tasks-done)); err != nil {
			return err
		}
	}
	took := time.Since(began)
	fmt.Printf("%d tasks enqueued in %.0f s, %.0f a second\n", tasks, took.Seconds(), float64(tasks)/took.Seconds())
	if err := s.Worker(ctx); err != nil {
		return err
	}
	fmt.Printf("%8s %10s %12s %10s %14s\n", "s", "done", "tasks/s", "worker MiB", "urgent ms")
	var rates, urgent []float64
	var most int64
	drain, last, lastAt := time.Now(), 0, time.Now()
	for last < tasks {
		took, err := one(ctx, s)
		if err != nil {
			return err
		}
		urgent = append(urgent, took)
		select {
		case <-time.After(time.Second): // the next one
		case <-ctx.Done():
			return ctx.Err()
		}
		most = max(most, s.Memory("worker"))
		if time.Since(lastAt) < 10*time.Second {
			continue
		}
		var open int
		if err := s.Pool.QueryRow(ctx, `SELECT count(*) FROM tasker.tasks WHERE state IN ('pending', 'in_progress')`).Scan(&open); err != nil {
			return err
		}
		rate := float64(tasks-open-last) / time.Since(lastAt).Seconds()
		last, lastAt = tasks-open, time.Now()
		if open > 0 {
			rates = append(rates, rate)
		}
		fmt.Printf("%8.0f %10d %12.0f %10d %14.1f\n", time.Since(drain).Seconds(), last, rate, s.Memory("worker")>>20, urgent[len(urgent)-1])
	}
	if len(rates) == 0 {
		fmt.Fprintln(os.Stderr, "it was over before it could be watched: take more -tasks")
		return nil
	}
	third, wait := max(len(rates)/3, 1), stage.SpreadOf(urgent)
	fmt.Printf("the last third ran at %.2f of the speed of the first; the worker took %d MiB at most; an urgent task took %.0f ms, the slowest of %d %.0f\n",
		mean(rates[len(rates)-third:])/mean(rates[:third]), most>>20, wait.Median, len(urgent), wait.Most)
	return nil
}

func enqueue(ctx context.Context, s *stage.Stage, template string, n int) error {
	_, err := s.Pool.Exec(ctx, `INSERT INTO tasker.tasks (namespace, name) SELECT 'bench', $1 FROM generate_series(1, $2::int)`, template, n)
	return err
}

// patient is bench/four with steps that wait: what bounds the worker is how many
// tasks it may run, not the machine.
var patient = strings.ReplaceAll(strings.Replace(stage.FourSteps, "name: four", "name: patient", 1),
	"handler: tasker.echo", "handler: tasker.sleep, handler_config: {seconds: 0.02}")

// period is what happened between two looks.
type period struct {
	rate     float64 // tasks completed a second
	open     int     // at its end
	p50, p99 float64 // milliseconds from a task's start to its end
	urgent   float64 // milliseconds from enqueuing an urgent task to its end
	memory   int64   // of the first worker
}

// watch waits for so long and looks at what has happened since.
func watch(ctx context.Context, s *stage.Stage, lasting time.Duration) (p period, err error) {
	var since time.Time
	if err := s.Pool.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&since); err != nil {
		return p, err
	}
	if p.urgent, err = one(ctx, s); err != nil {
		return p, err
	}
	select {
	case <-time.After(lasting): // the period
	case <-ctx.Done():
		return p, ctx.Err()
	}
	err = s.Pool.QueryRow(ctx, `SELECT count(*) / extract(epoch FROM clock_timestamp() - $1)::float,
			coalesce(percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM finished_at - started_at)), 0) * 1000,
			coalesce(percentile_cont(0.99) WITHIN GROUP (ORDER BY extract(epoch FROM finished_at - started_at)), 0) * 1000
		FROM tasker.tasks WHERE state = 'complete' AND finished_at > $1`, since).Scan(&p.rate, &p.p50, &p.p99)
	if err != nil {
		return p, err
	}
	p.memory = s.Memory("worker")
	err = s.Pool.QueryRow(ctx, `SELECT count(*) FROM tasker.tasks WHERE state IN ('pending', 'in_progress')`).Scan(&p.open)
	return p, err
}

func overload(ctx context.Context, s *stage.Stage, lasting time.Duration) error {
	if err := s.Register(ctx, "patient", patient); err != nil {
		return err
	}
	if err := s.Worker(ctx, "--max-tasks", "20"); err != nil {
		return err
	}
	began := time.Now()
	fmt.Printf("%8s %-10s %10s %10s %12s %12s %10s %12s\n", "s", "", "open", "tasks/s", "p50 ms", "p99 ms", "MiB", "urgent ms")
	look := func(what string) (period, error) {
		p, err := watch(ctx, s, 10*time.Second)
		if err == nil {
			fmt.Printf("%8.0f %-10s %10d %10.0f %12.0f %12.0f %10d %12.1f\n", time.Since(began).Seconds(), what, p.open, p.rate, p.p50, p.p99, p.memory>>20, p.urgent)
		}
		return p, err
	}
	// What it carries: while there is just enough to do.
	if err := enqueue(ctx, s, "patient", 5000); err != nil {
		return err
	}
	before, err := look("enough")
	if err != nil {
		return err
	}
	flooding, enough := context.WithTimeout(ctx, lasting)
	defer enough()
	failed, refused := make(chan error, 1), 0
	go func() {
		const every = 100 * time.Millisecond
		for ticks := time.NewTicker(every); ; {
			if err := enqueue(flooding, s, "patient", int(10*before.rate*every.Seconds())); err != nil && flooding.Err() == nil {
				refused++
			}
			select {
			case <-ticks.C:
			case <-flooding.Done():
				failed <- ctx.Err()
				return
			}
		}
	}()
	most := period{}
	note := func(p period) {
		most.memory, most.p99, most.urgent = max(most.memory, p.memory), max(most.p99, p.p99), max(most.urgent, p.urgent)
	}
	for flooding.Err() == nil {
		p, err := look("flood")
		if err != nil {
			return err
		}
		note(p)
	}
	if err := <-failed; err != nil {
		return err
	}
	after, err := look("after it")
	if err != nil {
		return err
	}
	fmt.Printf("ten times too much for %s, %d enqueuings refused: %.2f of the speed of before at its end; p99 of a started task %.0f ms (%.0f before), at most %.0f; "+
		"an urgent one %.0f ms at most; the worker took %d MiB at most (%d before)\n",
		lasting, refused, after.rate/before.rate, after.p99, before.p99, most.p99, most.urgent, most.memory>>20, before.memory>>20)
	if _, err := s.Start(ctx, "helper", s.Tasker, "worker", "--log-level", "warn"); err != nil {
		return err
	}
	for p := after; p.open > 0; {
		if p, err = look("drained"); err != nil {
			return err
		}
	}
	fmt.Printf("drained %.0f s after the flood began\n", time.Since(began).Seconds())
	return nil
}

// one enqueues an urgent task and says after how many milliseconds it was complete.
func one(ctx context.Context, s *stage.Stage) (ms float64, err error) {
	var task int64
	if err := s.Pool.QueryRow(ctx, `INSERT INTO tasker.tasks (namespace, name, priority) VALUES ('bench', 'four', 1) RETURNING task_id`).Scan(&task); err != nil {
		return 0, err
	}
	for began := time.Now(); time.Since(began) < time.Minute; {
		err := s.Pool.QueryRow(ctx, `SELECT extract(epoch FROM finished_at - created_at) * 1000 FROM tasker.tasks WHERE task_id = $1 AND state = 'complete'`, task).Scan(&ms)
		if err == nil {
			return ms, nil
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	return 0, errors.New("an urgent task was not complete within a minute")
}

func mean(values []float64) float64 {
	var sum float64
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}
