package orchestrator_test

import (
	"context"
	"testing"
	"time"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/orchestrator"
)

const oneStep = `
name: one
namespace_name: test
step_templates:
  - {name: only, handler: tasker.echo}`

const oneRubyStep = `
name: one
namespace_name: test
step_templates:
  - {name: only, handler_class: Anything}`

func TestATaskThatCameAloneNeedsNoJob(t *testing.T) {
	t.Parallel()
	o, _, s := setup(t, oneStep)
	o.MaxTasks = 10
	task := enqueue(t, s, "one")
	o.Enqueued(task, 7)
	if o.Held() != 0 {
		t.Error("a worker that doesn't know its share has taken a task")
	}
	o.SetPlace(int(task+1)%2, 2)
	o.Enqueued(task, 7)
	if o.Held() != 0 {
		t.Error("a worker has taken a task of another's share")
	}
	o.SetPlace(int(task%2), 2)
	o.Enqueued(task, 7)
	if err := o.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Task(t.Context(), task); err != nil || got.State != tasker.TaskComplete {
		t.Errorf("the task is %+v, %v", got, err)
	}
	if err := o.Run(t.Context(), task, 7); err != nil {
		t.Errorf("its job, that came when all was done: %v", err)
	}
}

func TestTheJobOfATaskThatCameAloneJoinsItsVisit(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		about string
		job   int64
		epoch int
	}{
		{"its job has nothing more to ask for", 7, 1},
		{"another job may know of a report, and has the task looked at again", 8, 2},
	} {
		t.Run(c.about, func(t *testing.T) {
			t.Parallel()
			o, w, s := setup(t, oneRubyStep)
			o.MaxTasks = 10
			o.SetPlace(0, 1)
			task := enqueue(t, s, "one")
			o.Enqueued(task, 7)
			<-w.signal // the step was pushed
			joined := make(chan error, 1)
			go func() { joined <- o.Run(t.Context(), task, c.job) }()
			// Parks as soon as it is told to; by then the job has joined, or it runs
			// after the visit and claims by itself, which the epoch would show.
			o.AwaitJoined(task)
			o.Tune(orchestrator.Tuning{ParkAfter: time.Millisecond, HoldFor: time.Millisecond})
			o.Changed(task)
			if err := <-joined; err != nil {
				t.Fatal(err)
			}
			var epoch int
			if err := w.pool.QueryRow(t.Context(), `SELECT epoch FROM tasker.tasks WHERE task_id = $1`, task).Scan(&epoch); err != nil || epoch != c.epoch {
				t.Errorf("the task was claimed %d times, want %d (%v)", epoch, c.epoch, err)
			}
		})
	}
}

func TestABusyWorkerLeavesTasksThatComeAloneToTheirJobs(t *testing.T) {
	t.Parallel()
	o, w, s := setup(t, oneRubyStep)
	o.MaxTasks = 100
	o.SetPlace(0, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range orchestrator.LittleToDo {
		o.Enqueued(enqueue(t, s, "one"), 7)
		<-w.signal
	}
	o.Enqueued(enqueue(t, s, "one"), 7)
	if held := o.Held(); held != orchestrator.LittleToDo {
		t.Errorf("it holds %d tasks, want %d", held, orchestrator.LittleToDo)
	}
	o.Drain(ctx)
	if err := o.Settle(t.Context()); err != nil || o.Held() != 0 {
		t.Errorf("after draining it holds %d tasks, %v", o.Held(), err)
	}
	o.Enqueued(enqueue(t, s, "one"), 7)
	if o.Held() != 0 {
		t.Error("a worker that stops has taken a task")
	}
}
