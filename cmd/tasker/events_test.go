package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/testenv"
)

func TestEventsAreShownAndFollowed(t *testing.T) {
	t.Parallel()
	url := testenv.Database(t)
	db := []string{"--database-url", url}
	expect(t, exitDone, "registered", append(db, "template", "register", folder(t, map[string]string{"one.yaml": one}))...)
	expect(t, exitDone, "task 1", append(db, "task", "enqueue", "test/one")...)
	expect(t, exitDone, "task 2", append(db, "task", "enqueue", "test/one")...)
	expect(t, exitDone, "", append(db, "task", "cancel", "2", "--reason", "a test")...)

	got := expect(t, exitDone, "task.initialize_requested   task 1  test/one\n", append(db, "events", "tail")...)
	if n := strings.Count(got, "\n"); n < 4 {
		t.Errorf("got %d lines\n%s", n, got)
	}
	got = expect(t, exitDone, `task.cancelled              task 2  test/one  {"by": `, append(db, "events", "tail", "task.*", "--task", "2")...)
	if strings.Contains(got, "task 1") || strings.Contains(got, "step.") {
		t.Errorf("others than those asked for:\n%s", got)
	}
	expect(t, exitRefused, `patterns of events must be like step.completed`, append(db, "events", "tail", "Task")...)
	expect(t, exitUsage, "--since is an age", append(db, "events", "tail", "--since", "yesterday")...)
	expect(t, exitNotFound, "task 99", append(db, "events", "tail", "--task", "99")...)

	// Followed until Ctrl-C, which is a context that ends.
	ctx, interrupt := context.WithCancel(t.Context())
	out, in := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, append(db, "events", "tail", "--follow", "-o", "json", "order.*"), strings.NewReader(""), in, os.Stderr)
		_ = in.Close() // the reader's end of file
	}()
	if _, err := testenv.Pool(t, url).Exec(t.Context(), `SELECT tasker.publish_event('order.fulfilled', '{"order_id": 7}', 1)`); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		t.Fatal("it ended by itself")
	}
	var e tasker.Event
	if err := json.Unmarshal(lines.Bytes(), &e); err != nil || e.Name != "order.fulfilled" || e.TaskID != 1 || e.TaskName != "one" || string(e.Data) != `{"order_id":7}` {
		t.Errorf("got %s, %v", lines.Text(), err)
	}
	interrupt()
	if code := <-ended; code != exitDone {
		t.Errorf("after Ctrl-C: exit %d", code)
	}
}

func TestSubscribersAreListedAndDropped(t *testing.T) {
	t.Parallel()
	url := testenv.Database(t)
	db := []string{"--database-url", url}
	expect(t, exitDone, "[]", append(db, "events", "subscribers", "-o", "json")...)
	pool := testenv.Pool(t, url)
	for _, sql := range []string{
		`SELECT tasker.subscribe('mailer', '{order.*}', 'beginning')`,
		`SELECT tasker.publish_event('order.fulfilled')`,
		`SELECT FROM tasker.next_events('mailer', 'ada')`,
		`SELECT tasker.event_failed('mailer', 'ada', 1, 'no stamps')`,
	} {
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	got := expect(t, exitDone, "event 1: no stamps", append(db, "events", "subscribers")...)
	if !strings.Contains(got, "mailer  order.*   1       ") || !strings.Contains(got, "  ada  ") {
		t.Errorf("got\n%s", got)
	}
	expect(t, exitDone, "mailer is no subscriber any more", append(db, "events", "unsubscribe", "mailer")...)
	expect(t, exitNotFound, "tasker events subscribers", append(db, "events", "unsubscribe", "mailer")...)
}
