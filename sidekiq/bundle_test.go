package sidekiq_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/sidekiq"
	"github.com/taskerhq/tasker/testenv"
)

// quick is a process with ten threads where Noop takes next to nothing.
func quick() sidekiq.Consumer {
	return sidekiq.Consumer{Queues: []string{"default"}, Concurrency: 10, Bundles: true, Takes: map[string]time.Duration{"Noop": time.Microsecond, "Two": 2 * time.Millisecond, "Ten": 10 * time.Millisecond, "Slow": time.Second}}
}

func dispatches(n int, handler string) []tasker.Dispatch {
	all := make([]tasker.Dispatch, n)
	for i := range all {
		all[i] = tasker.Dispatch{TaskID: 1, StepID: int64(i + 1), Attempt: 1, Handler: handler, Queue: "default"}
	}
	return all
}

// sizes pushes attempts and returns how many each job carries, in the order in
// which a process would take them.
func sizes(t *testing.T, consumers []sidekiq.Consumer, waiting int, attempts []tasker.Dispatch) []int {
	t.Helper()
	p, client := pusher(t)
	if consumers != nil {
		p.SetConsumers(consumers)
	}
	for range waiting {
		if err := client.LPush(t.Context(), "queue:default", `{"class":"Other","args":[],"jid":"1"}`).Err(); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.PushNow(t.Context(), attempts); err != nil {
		t.Fatal(err)
	}
	jobs, err := client.LRange(t.Context(), "queue:default", 0, -1).Result()
	if err != nil {
		t.Fatal(err)
	}
	var carried []int
	var steps []int64
	for _, text := range slices.Backward(jobs) {
		var j struct {
			Class string `json:"class"`
			Args  []struct {
				Step     int64      `json:"step_id"`
				Attempts [][2]int64 `json:"attempts"`
			} `json:"args"`
		}
		if err := json.Unmarshal([]byte(text), &j); err != nil {
			t.Fatal(err)
		}
		if j.Class == "Other" {
			continue
		}
		carried = append(carried, max(len(j.Args[0].Attempts), 1))
		for _, a := range j.Args[0].Attempts {
			steps = append(steps, a[0])
		}
		if j.Args[0].Step > 0 {
			steps = append(steps, j.Args[0].Step)
		}
	}
	slices.Sort(steps)
	for i, s := range steps {
		if s != int64(i+1) {
			t.Fatalf("the jobs carry steps %v", steps)
		}
	}
	if len(steps) != len(attempts) {
		t.Fatalf("%d attempts went into jobs, of %d", len(steps), len(attempts))
	}
	return carried
}

func TestAttemptsRideTogetherOnlyWhenWorkHasPiledUp(t *testing.T) {
	t.Parallel()
	old := sidekiq.Consumer{Queues: []string{"default"}, Concurrency: 5}
	elsewhere := sidekiq.Consumer{Queues: []string{"other"}, Concurrency: 50}
	alone := dispatches(40, "Noop")
	for i := range alone {
		alone[i].Alone = true
	}
	fill := func(n, size int) []int { return slices.Repeat([]int{size}, n) }
	for _, c := range []struct {
		name      string
		consumers []sidekiq.Consumer
		waiting   int
		attempts  []tasker.Dispatch
		want      []int
	}{
		{"nobody has said who takes them", nil, 100, dispatches(40, "Noop"), fill(40, 1)},
		{"as many as threads", []sidekiq.Consumer{quick()}, 0, dispatches(10, "Noop"), fill(10, 1)},
		{"one more than threads", []sidekiq.Consumer{quick()}, 0, dispatches(11, "Two"), append(fill(9, 1), 2)},
		{"twice the threads", []sidekiq.Consumer{quick()}, 0, dispatches(20, "Two"), fill(10, 2)},
		{"half of what the threads need is there", []sidekiq.Consumer{quick()}, 5, dispatches(20, "Two"), fill(5, 4)},
		{"next to no work for many threads", []sidekiq.Consumer{quick()}, 0, dispatches(30, "Noop"), fill(1, 30)},
		{"next to no work, more than one job may carry", []sidekiq.Consumer{quick()}, 0, dispatches(80, "Noop"), fill(2, 40)},
		{"a backlog", []sidekiq.Consumer{quick()}, 100, dispatches(120, "Noop"), fill(3, 40)},
		{"one attempt in a backlog", []sidekiq.Consumer{quick()}, 100, dispatches(1, "Noop"), fill(1, 1)},
		{"more processes", []sidekiq.Consumer{quick(), quick()}, 0, dispatches(20, "Noop"), fill(20, 1)},
		{"threads of another queue don't count", []sidekiq.Consumer{quick(), elsewhere}, 0, dispatches(20, "Two"), fill(10, 2)},
		{"handlers that take a while: 50 ms together", []sidekiq.Consumer{quick()}, 100, dispatches(20, "Ten"), fill(4, 5)},
		{"handlers that take long", []sidekiq.Consumer{quick()}, 100, dispatches(20, "Slow"), fill(20, 1)},
		{"handlers of which nothing is known", []sidekiq.Consumer{quick()}, 100, dispatches(20, "New"), fill(20, 1)},
		{"attempts with a short clock", []sidekiq.Consumer{quick()}, 100, alone, fill(40, 1)},
		{"a process of an older gem", []sidekiq.Consumer{quick(), old}, 100, dispatches(40, "Noop"), fill(40, 1)},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got := sizes(t, c.consumers, c.waiting, c.attempts)
			slices.Sort(got)
			if !slices.Equal(got, c.want) {
				t.Errorf("jobs carry %v, want %v", got, c.want)
			}
		})
	}
}

// contract/sidekiq_bundle.json is read by the gem's specs too.
func TestTheBundleIsThatOfTheContract(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../contract/sidekiq_bundle.json")
	if err != nil {
		t.Fatal(err)
	}
	var contract struct {
		Input []struct {
			StepID  int64  `json:"step_id"`
			Attempt int    `json:"attempt"`
			TaskID  int64  `json:"task_id"`
			Handler string `json:"handler"`
			Queue   string `json:"queue"`
			Ticket  int64  `json:"ticket"`
		} `json:"input"`
		Job map[string]any `json:"job"`
	}
	if err := json.Unmarshal(text, &contract); err != nil {
		t.Fatal(err)
	}
	var attempts []tasker.Dispatch
	takes := map[string]time.Duration{}
	for _, in := range contract.Input {
		attempts = append(attempts, tasker.Dispatch{TaskID: in.TaskID, StepID: in.StepID, Attempt: in.Attempt, Handler: in.Handler, Queue: in.Queue, Ticket: in.Ticket})
		takes[in.Handler] = time.Millisecond
	}
	p, client := pusher(t)
	p.SetConsumers([]sidekiq.Consumer{{Concurrency: 1, Bundles: true, Takes: takes}})
	if err := p.PushNow(t.Context(), attempts); err != nil {
		t.Fatal(err)
	}
	payload, err := client.RPop(t.Context(), "queue:critical").Result()
	if err != nil {
		t.Fatal(err)
	}
	var job map[string]any
	if err := json.Unmarshal([]byte(payload), &job); err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{"created_at", "enqueued_at"} {
		job[at] = contract.Job[at]
	}
	if got, want := mustMarshal(t, job), mustMarshal(t, contract.Job); got != want {
		t.Errorf("the job is not that of the contract\n got: %s\nwant: %s", got, want)
	}
	missing, err := p.Missing(t.Context(), attempts)
	if err != nil || len(missing) != len(attempts) {
		t.Errorf("of a job that was taken, %v are missing (%v)", missing, err)
	}
}

func TestAttemptsThatRideTogetherAreNotMissing(t *testing.T) {
	t.Parallel()
	p, _ := pusher(t)
	p.SetConsumers([]sidekiq.Consumer{quick()})
	all := dispatches(300, "Noop")
	if err := p.PushNow(t.Context(), all[:200]); err != nil {
		t.Fatal(err)
	}
	missing, err := p.Missing(t.Context(), all)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(missing), fmt.Sprint(all[200:]); got != want {
		t.Errorf("missing %s, want %s", got, want)
	}
}

func TestAttemptsWaitForCompanyOnlyWhileThreadsHaveWork(t *testing.T) {
	t.Parallel()
	client, err := sidekiq.Open(testenv.Redis(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() }) // the test is over
	wait := 500 * time.Millisecond
	p := sidekiq.Tuning{BundleWait: wait}.NewPusher(client, slog.New(slog.DiscardHandler))
	p.SetConsumers([]sidekiq.Consumer{quick()})
	go p.Run(t.Context())
	length := func(want int64) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			n, err := client.LLen(t.Context(), "queue:default").Result()
			if err != nil {
				t.Fatal(err)
			}
			if n == want {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("the queue has %d jobs, want %d", n, want)
			}
		}
	}
	all := dispatches(20, "Slow") // one job each
	p.Push(all[:10])
	length(10)
	begun := time.Now()
	p.Push(all[10:15]) // as many as threads, so these come at once
	length(15)
	if took := time.Since(begun); took >= wait {
		t.Errorf("with no more jobs than threads, a push took %s", took)
	}
	noop := dispatches(3, "Noop")
	for i := range noop {
		p.Push(noop[i : i+1])
	}
	length(16) // all three in one job
}
