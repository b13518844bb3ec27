package worker_test

import (
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/taskerhq/tasker/crash"
	"github.com/taskerhq/tasker/testenv"
)

// crashing starts a worker that kills itself when it comes to the point.
func (b *bundle) crashing(at crash.Point, args ...string) *child {
	b.Helper()
	return b.launchProgram(testenv.CrashingBinary(b.T), []string{"TASKER_CRASH_AT=" + string(at)}, append(slices.Clone(hasty), args...)...)
}

// Guarantees 2, 3 and 6: a worker is killed once at each of the places between
// two durable actions, in the middle of its work, and another goes on from what
// it has left.
func TestAWorkerThatDiesAtAnyCrashPointLosesNothing(t *testing.T) {
	for _, point := range crash.Points {
		t.Run(string(point), func(t *testing.T) {
			b := setup(t)
			b.workerEnv = []string{"TASKER_WORKER_UNSTARTED_FOR=1s", "TASKER_WORKER_REPAIR_EVERY=500ms"}
			b.registerHalted()
			b.sidekiq()
			var more []string
			switch point {
			case crash.TemplateRegistered:
				more = []string{"--templates", "../examples/orders/config/tasker/tasks"}
			case crash.WorkerReaped: // somebody has to be dead
				first := b.haltingWorker()
				b.enqueueHalted(5)
				b.until("the first worker has begun", func() bool { return b.number(`SELECT count(*) FROM tasker.tasks WHERE owner IS NOT NULL`) > 0 })
				first.kill(b)
			case crash.UnstartedTaken: // Redis has to have lost something
				first := b.haltingWorker()
				b.enqueueHalted(20)
				b.until("attempts are out", func() bool { return b.number(`SELECT count(*) FROM tasker.dispatches WHERE started_at IS NULL`) > 0 })
				b.must(b.redis().FlushAll(t.Context()).Err())
				first.kill(b)
			default:
			}
			dying := b.crashing(point, more...)
			ended := make(chan struct{})
			go func() {
				_ = dying.cmd.Wait() // its state says how it ended
				close(ended)
			}()
			for deadline := time.After(patience); ; {
				if point != crash.TemplateRegistered && point != crash.WorkerRegistered {
					b.enqueueMany("halted", `{}`, 1) // what comes alone
				}
				if point == crash.JobFetched || point == crash.JobServed {
					b.enqueueHalted(20) // and what comes in a crowd
				}
				if point == crash.WorkerDrained && b.number(`SELECT count(*) FROM tasker.tasks WHERE owner IS NOT NULL`) > 0 {
					b.must(dying.cmd.Process.Signal(syscall.SIGTERM))
				}
				if b.dies(dying, ended, deadline) {
					break
				}
			}
			b.enqueueHalted(2)
			b.haltingWorker()
			b.checkHalted()
		})
	}
}

// dies waits a moment for the process to have been killed.
func (b *bundle) dies(c *child, ended <-chan struct{}, deadline <-chan time.Time) bool {
	b.Helper()
	select {
	case <-ended: // how, its state says
		if status, ok := c.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
			b.Fatalf("the worker was not killed, it ended: %s", c.cmd.ProcessState)
		}
		return true
	case <-time.After(100 * time.Millisecond):
		return false
	case <-deadline:
		b.Fatal("the worker did not come to the point")
		return false
	}
}
