package main

import (
	"bytes"
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/taskerhq/tasker/testenv"
)

// One worker, and tasks that come to rest for all the reasons there are.
func TestATaskIsExplained(t *testing.T) {
	t.Parallel()
	url := testenv.Database(t)
	db := []string{"--database-url", url}
	templates := map[string]string{
		"done":    "{name: only, handler: tasker.echo}",
		"runs":    "{name: slow, handler: tasker.sleep, handler_config: {seconds: 600}}, {name: after, handler: tasker.echo, depends_on_step: slow}",
		"retries": "{name: flaky, handler: tasker.fail, handler_config: {times: 9}, default_retry_limit: 5, retry: {backoff: fixed, base_seconds: 3000, cap_seconds: 3000, jitter: 0}}",
		"fails": "{name: charge, handler: tasker.fail, handler_config: {permanent: true}}, {name: ship, handler: tasker.echo, depends_on_step: charge}, " +
			"{name: mail, handler: tasker.echo, depends_on_step: ship}",
		"tries":     "{name: charge, handler: tasker.fail, handler_config: {times: 9}, default_retry_limit: 2, retry: {backoff: none}}",
		"parks":     "{name: ruby, handler_class: Billing::Charge, queue: billing}",
		"unhandled": "{name: foreign, handler: billing.charge}",
	}
	files := map[string]string{}
	for name, steps := range templates {
		files[name+".yaml"] = "name: " + name + "\nnamespace_name: test\nversion: 1.0.0\nstep_templates: [" + steps + "]\n"
	}
	expect(t, exitDone, "registered", append(db, "template", "register", folder(t, files))...)

	enqueue := func(name string, more ...string) string {
		t.Helper()
		var made struct {
			TaskID int64 `json:"task_id"`
		}
		out := expect(t, exitDone, "task_id", append(append(db, "-o", "json", "task", "enqueue", "test/"+name), more...)...)
		if err := json.Unmarshal([]byte(out), &made); err != nil {
			t.Fatal(err)
		}
		return strconv.FormatInt(made.TaskID, 10)
	}
	// explains waits until the task has come to where its explanation has all the parts.
	explains := func(task string, parts ...string) {
		t.Helper()
		deadline := time.Now().Add(30 * time.Second)
		for {
			code, stdout, stderr := command(t, append(db, "explain", task)...)
			missing := ""
			for _, part := range parts {
				if !strings.Contains(stdout, part) {
					missing = part
				}
			}
			switch {
			case code == exitDone && missing == "":
				return
			case time.Now().After(deadline):
				t.Errorf("tasker explain %s: exit %d\n%s%s\nwant: … %s …", task, code, stdout, stderr, missing)
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
	}

	later := enqueue("done", "--in", "1h")
	explains(later, "is enqueued for later: it starts in 59m", "scheduled", "tasker task run-now "+later, "tasker task cancel "+later, "Nothing is expected before ")
	nobody := enqueue("parks")
	explains(nobody, "is pending: no worker has taken it yet", "no_worker_alive", "may start, and no worker is alive that would start it", "tasker worker  ")
	unhandled := enqueue("unhandled")
	explains(unhandled, "no_handler_alive", "needs the Go handler billing.charge, and no worker is alive")

	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, append(db, "worker", "--log-level", "error", "--shutdown-timeout", "1s"), strings.NewReader(""), new(bytes.Buffer), new(bytes.Buffer))
	}()
	defer func() { stop(); <-ended }()

	explains(nobody, "in progress with 0 of 1 step done", "no_process_alive", "attempt 1 of 3 is in Sidekiq's queue billing, and no Sidekiq process",
		"bundle exec sidekiq", "tasker step skip ", "tasker step resolve ")
	explains(unhandled, "needs the Go handler billing.charge, and none of the workers alive (1) has it", "a worker whose program registers the handler that foreign needs")
	explains(enqueue("done"), "is complete: 1 of 1 step done", "completed with attempt 1")
	explains(enqueue("runs"), "in progress with 0 of 2 steps done", "attempt 1 of 3 runs for ", " in worker ",
		"waits for 1 of 1 dependencies: slow (in progress)", "tasker task cancel ")
	explains(enqueue("retries"), "backoff", "attempt 2 of 5 begins in 29", "the last one failed: failed as told", "Nothing is expected before ", "tasker step retry ")
	failed := enqueue("fails")
	explains(failed, "has failed with 0 of 3 steps done, and nothing in it can move by itself",
		"failed for good with attempt 1: failed as told", "can't run as things stand: charge (error: failed as told)",
		"can't run as things stand: ship (pending), behind charge (error: failed as told)",
		"tasker step retry ", "tasker step skip ", "tasker task retry "+failed, "tasker task resolve "+failed)
	explains(enqueue("tries"), "attempts_exhausted", "used up its 2 attempts, the last one failed: failed as told")

	paused := enqueue("done", "--in", "1h")
	expect(t, exitDone, "is paused", append(db, "task", "pause", paused)...)
	explains(paused, "its task was paused ", "tasker task resume "+paused)
	cancelled := enqueue("done", "--in", "1h")
	expect(t, exitDone, "is cancelled", append(db, "task", "cancel", cancelled)...)
	explains(cancelled, "was cancelled with 0 of 1 step done. Nothing moves it any more")

	expect(t, exitNotFound, "task 99: not found", append(db, "explain", "99")...)
	expect(t, exitUsage, "is no task id", "explain", "seven")
	var doc struct {
		TaskID      int64  `json:"task_id"`
		Explanation string `json:"explanation"`
		Commands    []move `json:"commands"`
		Steps       []struct {
			Reason    string   `json:"reason"`
			WaitingOn []string `json:"waiting_on"`
		} `json:"steps"`
	}
	out := expect(t, exitDone, "", append(db, "-o", "json", "explain", failed)...)
	if err := json.Unmarshal([]byte(out), &doc); err != nil || len(doc.Steps) != 3 || doc.Steps[1].Reason != "blocked" ||
		len(doc.Steps[1].WaitingOn) != 1 || len(doc.Commands) == 0 || text(doc.TaskID) != failed || doc.Explanation == "" {
		t.Errorf("%v, %+v in %s", err, doc, out)
	}
}
