package sidekiq_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/sidekiq"
	"github.com/taskerhq/tasker/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func pusher(t *testing.T) (*sidekiq.Pusher, *redis.Client) {
	t.Helper()
	client, err := sidekiq.Open(testenv.Redis(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() }) // the test is over
	return sidekiq.NewPusher(client, slog.New(slog.DiscardHandler)), client
}

// contract/sidekiq_job.json is read by the gem's specs too.
func TestTheJobIsThatOfTheContract(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../contract/sidekiq_job.json")
	if err != nil {
		t.Fatal(err)
	}
	var contract struct {
		Input struct {
			StepID        int64  `json:"step_id"`
			Attempt       int    `json:"attempt"`
			TaskID        int64  `json:"task_id"`
			Handler       string `json:"handler"`
			Queue         string `json:"queue"`
			CorrelationID string `json:"correlation_id"`
			Ticket        int64  `json:"ticket"`
		} `json:"input"`
		Job map[string]any `json:"job"`
	}
	if err := json.Unmarshal(text, &contract); err != nil {
		t.Fatal(err)
	}
	in := contract.Input
	p, client := pusher(t)
	before := time.Now()
	if err := p.PushNow(t.Context(), []tasker.Dispatch{{TaskID: in.TaskID, StepID: in.StepID, Attempt: in.Attempt, Handler: in.Handler, Queue: in.Queue, CorrelationID: in.CorrelationID, Ticket: in.Ticket}}); err != nil {
		t.Fatal(err)
	}
	payload, err := client.RPop(t.Context(), "queue:"+in.Queue).Result()
	if err != nil {
		t.Fatal(err)
	}
	var job map[string]any
	if err := json.Unmarshal([]byte(payload), &job); err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{"created_at", "enqueued_at"} {
		seconds, _ := job[at].(float64)
		if pushed := time.UnixMicro(int64(seconds * 1e6)); pushed.Before(before.Add(-time.Millisecond)) || pushed.After(time.Now().Add(time.Millisecond)) {
			t.Errorf("%s is %v", at, job[at])
		}
		job[at] = contract.Job[at]
	}
	got, want := mustMarshal(t, job), mustMarshal(t, contract.Job)
	if got != want {
		t.Errorf("the job is not that of the contract\n got: %s\nwant: %s", got, want)
	}
	// An integer would be milliseconds to Sidekiq 8.
	if !regexp.MustCompile(`"created_at":\d+\.\d{6},"enqueued_at":\d+\.\d{6}[,}]`).MatchString(payload) {
		t.Errorf("times must have a fraction: %s", payload)
	}
	if queues, err := client.SMembers(t.Context(), "queues").Result(); err != nil || len(queues) != 1 || queues[0] != in.Queue {
		t.Errorf("queues: %v, %v", queues, err)
	}
}

func mustMarshal(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestJobsOfAQueueLeaveInTheOrderTheyCame(t *testing.T) {
	t.Parallel()
	p, client := pusher(t)
	var all []tasker.Dispatch
	for i := range 2500 {
		all = append(all, tasker.Dispatch{StepID: int64(i + 1), Attempt: 1, Queue: []string{"a", "b"}[i%2]})
	}
	if err := p.PushNow(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(all); i += 2 {
		payload, err := client.RPop(t.Context(), "queue:a").Result()
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(payload, sidekiq.JID(int64(i+1), 1)) {
			t.Fatalf("job %d came out as %s", i+1, payload)
		}
	}
}

func TestMissingFindsWhatIsInNoQueue(t *testing.T) {
	t.Parallel()
	p, client := pusher(t)
	var all []tasker.Dispatch
	for i := range 2345 { // more than two pages
		all = append(all, tasker.Dispatch{StepID: int64(i + 1), Attempt: 1, Queue: "default"})
	}
	if err := p.PushNow(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	if err := client.LPush(t.Context(), "queue:default", "not JSON", `{"class":"Other","jid":"1"}`).Err(); err != nil {
		t.Fatal(err)
	}
	for range 3 { // a process takes the three oldest
		if err := client.RPop(t.Context(), "queue:default").Err(); err != nil {
			t.Fatal(err)
		}
	}
	next := tasker.Dispatch{StepID: 10, Attempt: 2, Queue: "default"} // another attempt of a queued step
	elsewhere := tasker.Dispatch{StepID: 11, Attempt: 1, Queue: "empty"}
	missing, err := p.Missing(t.Context(), append(all, next, elsewhere))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := mustMarshal(t, missing), mustMarshal(t, []tasker.Dispatch{all[0], all[1], all[2], next, elsewhere}); got != want {
		t.Errorf("missing:\n got: %s\nwant: %s", got, want)
	}
}

func TestRunPushesWhatIsHandedOver(t *testing.T) {
	t.Parallel()
	p, client := pusher(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { p.Run(ctx); close(ended) }()
	p.Push([]tasker.Dispatch{{StepID: 1, Attempt: 1, Queue: "default"}})
	if popped, err := client.BRPop(t.Context(), 30*time.Second, "queue:default").Result(); err != nil || !strings.Contains(popped[1], `"step_id":1`) {
		t.Errorf("popped %v, %v", popped, err)
	}
	cancel()
	<-ended
}

func TestABadURLIsRefusedWithoutItsPassword(t *testing.T) {
	t.Parallel()
	_, err := sidekiq.Open("http://user:secret@host/0")
	if err == nil || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), "redis://HOST:6379/0") {
		t.Errorf("got %v", err)
	}
}
