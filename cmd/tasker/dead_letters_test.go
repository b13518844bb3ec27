package main

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/testenv"
)

func TestDeadLettersAreListedShownAndAcknowledged(t *testing.T) {
	t.Parallel()
	url := testenv.Database(t)
	db := []string{"--database-url", url}
	pool := testenv.Pool(t, url)
	sql := func(text string) {
		t.Helper()
		if _, err := pool.Exec(t.Context(), text); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
	expect(t, exitDone, "registered", append(db, "template", "register", folder(t, map[string]string{"one.yaml": one}))...)
	expect(t, exitDone, "[]", append(db, "dead-letter", "list", "-o", "json")...)
	expect(t, exitDone, "task 1", append(db, "task", "enqueue", "test/one")...)
	expect(t, exitDone, "task 2", append(db, "task", "enqueue", "test/one")...)
	expect(t, exitDone, "task 3", append(db, "task", "enqueue", "test/one")...)
	sql(`UPDATE tasker.tasks SET state = 'error', finished_at = now() - interval '5 minutes', error = '{"message": "1 step failed: only"}' WHERE task_id = 2`)
	sql(`UPDATE tasker.tasks SET created_at = now() - interval '2 hours' WHERE task_id IN (1, 3)`)
	sql(`UPDATE tasker.events SET created_at = now() - interval '2 hours' WHERE task_id IN (1, 3)`)
	sql(`SELECT tasker.find_stale_tasks()`)

	const held = "only: needs the Go handler tasker.echo, and no worker is alive"
	if got, want := ages(expect(t, exitDone, "", append(db, "dead-letter", "list")...)), `ID  TASK  TEMPLATE  STATE  REASON  AGE  WHY
3  2  test/one@1.0.0  error  failed  5m0s  1 step failed: only
2  3  test/one@1.0.0  pending  stale_pending  2h0m0s  `+held+`
1  1  test/one@1.0.0  pending  stale_pending  2h0m0s  `+held+"\n"; got != want {
		t.Errorf("the list is\n%s\nwant\n%s", got, want)
	}
	if got := expect(t, exitDone, "1 step failed", append(db, "dead-letter", "list", "--reason", "failed")...); strings.Contains(got, "stale_pending") {
		t.Errorf("others than those asked for: %s", got)
	}
	expect(t, exitDone, "\n1   1 ", append(db, "dead-letter", "list", "--before", "2", "--limit", "1")...)
	expect(t, exitDone, "It is a dead letter (stale_pending) since ", append(db, "explain", "1")...)
	expect(t, exitDone, "tasker dead-letter acknowledge 1", append(db, "explain", "1")...)
	expect(t, exitDone, "open; what would move it: tasker explain 1", append(db, "dead-letter", "show", "1")...)

	expect(t, exitDone, "task 1 is off the list", append(db, "dead-letter", "acknowledge", "1", "--by", "ada", "--reason", "the worker comes tomorrow")...)
	expect(t, exitRefused, "task 1 has no open dead letter: there is nothing to acknowledge (the open ones: tasker dead-letter list)", append(db, "dead-letter", "acknowledge", "1")...)
	expect(t, exitDone, "is cancelled", append(db, "task", "cancel", "3", "--by", "bob", "--reason", "not needed")...)
	sql(`SELECT tasker.find_stale_tasks()`)
	expect(t, exitDone, held+"  acknowledged by ada: the worker comes tomorrow\n", append(db, "dead-letter", "list", "--all")...)
	expect(t, exitDone, "cancelled by bob: not needed\n", append(db, "dead-letter", "show", "3")...)
	var list []store.DeadLetter
	if err := json.Unmarshal([]byte(expect(t, exitDone, "", append(db, "dead-letter", "list", "-o", "json")...)), &list); err != nil || len(list) != 1 ||
		list[0].TaskID != 2 || list[0].Reason != store.DeadLetterFailed || list[0].Resolution != nil {
		t.Errorf("one is left open: %+v, %v", list, err)
	}

	expect(t, exitNotFound, "dead letter of task 99: not found", append(db, "dead-letter", "show", "99")...)
	expect(t, exitNotFound, "there is no task 99", append(db, "dead-letter", "acknowledge", "99")...)
	expect(t, exitUsage, "is no task id", "dead-letter", "show", "seven")
	expect(t, exitUsage, `--reason "bogus" is no reason of a dead letter; they are failed, stale_pending`, "dead-letter", "list", "--reason", "bogus")
	expect(t, exitUsage, "--limit is a number from 1 to 1000, not 0", "dead-letter", "list", "--limit", "0")
}

// ages rounds the ages in a list to what the test made them, and takes the
// padding from its columns, whose width depends on them.
func ages(list string) string {
	list = regexp.MustCompile(`(5m|2h0m)\d+s`).ReplaceAllString(list, "${1}0s")
	return regexp.MustCompile(` {3,}`).ReplaceAllString(list, "  ")
}
