// Command flood enqueues far more tasks than a worker can run, and watches how it
// copes: tasks of four steps in a row, a million at once, drained by one worker
// with its default settings. It prints how fast the work goes at the beginning
// and at the end, the worker's memory, and how long an urgent task takes that is
// enqueued every now and then meanwhile. Run it from the root of the repository,
// on a quiet machine:
//
//	go run ./bench/flood
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/taskerhq/tasker/bench/stage"
)

func main() {
	tasks := flag.Int("tasks", 1_000_000, "how many are enqueued at once")
	portion := flag.Int("portion", 10_000, "tasks of one INSERT")
	flag.Parse()
	stage.Main("flood", func(ctx context.Context) error { return measure(ctx, *tasks, *portion) })
}

func measure(ctx context.Context, tasks, portion int) (err error) {
	s, err := stage.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if err := s.Register(ctx, "four", stage.FourSteps); err != nil {
		return err
	}
	began := time.Now()
	for done := 0; done < tasks; done += portion {
		if _, err := s.Pool.Exec(ctx, `INSERT INTO tasker.tasks (namespace, name) SELECT 'bench', 'four' FROM generate_series(1, $1::int)`, min(portion, tasks-done)); err != nil {
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
