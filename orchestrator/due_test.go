package orchestrator

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/dag"
	"github.com/taskerhq/tasker/finalizer"
)

// A retry begins at the moment that it is due, whether its loop has waited for
// it or a River job has brought the task back: nothing is rounded up, nothing is
// polled for. (What the write and the claim then cost on a real machine, bench/latency
// measures.)
func TestARetryBeginsAtTheMomentThatItIsDue(t *testing.T) {
	for _, delay := range []tasker.Seconds{0.02, 1.9, 2.1, 3600} { // a loop is kept for 2 s
		s := &scenario{
			template: &tasker.Template{
				Namespace: "test", Name: "due", Version: "1.0.0", MaxParallelSteps: 1,
				Steps: []tasker.StepTemplate{{
					Name: "only", Handler: "simulated", Retryable: true, RetryLimit: 4,
					Retry: tasker.RetryPolicy{Backoff: tasker.BackoffFixed, Base: delay, Cap: delay},
				}},
			},
			script: [][]ending{{failure, failure, failure, success}},
		}
		var err error
		if s.graph, err = dag.New(s.template.Steps); err != nil {
			t.Fatal(err)
		}
		runs := 0
		for seed := range uint64(40) {
			w := &world{scenario: s, dice: rand.New(rand.NewPCG(seed, 0))}
			var took time.Duration
			synctest.Test(t, func(*testing.T) {
				began := time.Now()
				err = w.run()
				took = time.Since(began)
			})
			if err != nil {
				t.Fatal(err)
			}
			if w.crises < finalizer.MaxLosses {
				continue // the worker died on the way: that takes its own time
			}
			runs++
			if want := 3 * delay.Duration(); took != want {
				t.Errorf("three retries after %s each took %s, want %s", delay.Duration(), took, want)
			}
		}
		if runs == 0 {
			t.Error("the worker died in every run")
		}
	}
}
