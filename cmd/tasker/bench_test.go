package main

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/taskerhq/tasker/handler"
	"github.com/taskerhq/tasker/testenv"
	"github.com/taskerhq/tasker/worker"
)

func TestABenchIsRunByTheWorkersThatThereAre(t *testing.T) {
	t.Parallel()
	url := testenv.Database(t)
	db := []string{"--database-url", url}
	expect(t, exitFailed, "no worker is alive on this database: start one with tasker worker", append(db, "bench")...)

	ctx, stop := context.WithCancel(context.Background())
	started, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- worker.Run(ctx, worker.Config{DatabaseURL: url, Handlers: handler.NewRegistry(), Started: func(int64) { close(started) }})
	}()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	select {
	case <-started:
	case err := <-ended:
		t.Fatal(err)
	}

	out := expect(t, exitDone, "", append(db, "bench", "--tasks", "30", "--size", "5")...)
	if !strings.HasPrefix(out, "tasker_bench/chain_5@1.0.0: 30 of 30 tasks complete, 150 steps\n") || !strings.Contains(out, " steps/s, ") {
		t.Errorf("it says\n%s", out)
	}
	expect(t, exitDone, "a task, from its INSERT to its end: median ", append(db, "bench", "--shape", "single", "--in-turn", "--tasks", "3")...)
	expect(t, exitDone, "tasker_bench/diamond@1.0.0: 2 of 2 tasks complete, 8 steps", append(db, "bench", "--shape", "diamond", "--tasks", "2")...)
	var b benched
	out = expect(t, exitDone, "", append(db, "bench", "--shape", "fan", "--size", "7", "--tasks", "4", "-o", "json")...)
	if err := json.Unmarshal([]byte(out), &b); err != nil || b.Steps != 36 || b.Complete != 4 || b.Took <= 0 || b.Rate <= 0 || b.Median <= 0 || b.P99 < b.Median {
		t.Errorf("%v, %+v in %s", err, b, out)
	}

	expect(t, exitDone, "paused", append(db, "gate", "pause", "handler", benchHandler)...)
	_, _, stderr := command(t, append(db, "bench", "--tasks", "3", "--timeout", "1s")...)
	if !strings.Contains(stderr, "0 of 3 tasks were finished, 3 were cancelled\ntasker: after 1s (--timeout) not all tasks were finished") {
		t.Errorf("when its time is up it says\n%s", stderr)
	}
	expect(t, exitDone, "[]", append(db, "task", "list", "--state", "in_progress", "-o", "json")...)
	expect(t, exitDone, "[]", append(db, "task", "list", "--state", "pending", "-o", "json")...)
}

func TestABenchThatMakesNoSenseIsRefused(t *testing.T) {
	t.Parallel()
	for want, args := range map[string][]string{
		`--shape is chain, fan, diamond or single, not "ring"`:        {"--shape", "ring"},
		"--size is a number from 1 to 10000, not 0":                   {"--size", "0"},
		"--size is for chain and fan: a diamond has 4":                {"--shape", "diamond", "--size", "7"},
		"--tasks is a number from 1 to 100000, not 0":                 {"--tasks", "0"},
		"--timeout is a time such as 10m, not 0s":                     {"--timeout", "0s"},
		"no database given: set --database-url, TASKER_DATABASE_URL,": {},
	} {
		expect(t, exitUsage, want, append([]string{"bench"}, args...)...)
	}
}

func TestProgressIsOneLineOnATerminalAndLinesInAPipe(t *testing.T) {
	t.Parallel()
	show := func(terminal bool) string {
		var out bytes.Buffer
		p := &progress{out: &out, terminal: terminal, total: 12}
		p.show(1) // at once: nothing to tell yet
		for _, done := range []int{10, 9} {
			p.told = time.Now().Add(-time.Minute)
			p.show(done)
		}
		p.show(9) // too soon
		p.end()
		return out.String()
	}
	if got, want := show(false), "10 of 12 tasks\n9 of 12 tasks\n"; got != want {
		t.Errorf("in a pipe it writes %q, want %q", got, want)
	}
	if got, want := show(true), "\r10 of 12 tasks\r9 of 12 tasks \r              \r"; got != want {
		t.Errorf("on a terminal it writes %q, want %q", got, want)
	}
}
