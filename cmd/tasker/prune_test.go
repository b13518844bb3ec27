package main

import (
	"strings"
	"testing"

	"github.com/taskerhq/tasker/testenv"
)

func TestPruneRemovesWhatIsOldAndSaysWhatItKeeps(t *testing.T) {
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
	for flag, want := range map[string]string{"": "prune what? say --older-than AGE", "--older-than=90": `--older-than is an age such as 90d, 36h or 30m, up to 36500d, not "90"`,
		"--older-than=-1d": `not "-1d"`, "--events-older-than=99999d": `not "99999d"`} {
		args := append(append([]string{}, db...), "prune")
		if flag != "" {
			args = append(args, flag)
		}
		expect(t, exitUsage, want, args...)
	}
	expect(t, exitDone, "registered", append(db, "template", "register", folder(t, map[string]string{"one.yaml": one}))...)
	for range 3 {
		expect(t, exitDone, "task ", append(db, "task", "enqueue", "test/one")...)
	}
	sql(`ALTER TABLE tasker.tasks DISABLE TRIGGER refuse_transition;
		UPDATE tasker.tasks SET created_at = now() - interval '100 days', finished_at = now() - interval '99 days', state = CASE task_id WHEN 1 THEN 'complete' ELSE 'error' END WHERE task_id < 3;
		CREATE TABLE tasker.events_20200101 (LIKE tasker.events INCLUDING DEFAULTS, PRIMARY KEY (event_id));
		ALTER TABLE tasker.events ATTACH PARTITION tasker.events_20200101 FOR VALUES FROM ('2020-01-01 00:00+00') TO ('2020-01-02 00:00+00');
		INSERT INTO tasker.event_days (partition, since, until) VALUES ('events_20200101', '2020-01-01 00:00+00', '2020-01-02 00:00+00');
		SELECT tasker.subscribe('mailer', '{*}', 'beginning');
		INSERT INTO tasker.events (task_id, name, created_at) VALUES (1, 'task.completed', '2020-01-01 12:00+00')`)

	const held = `kept events_20200101: subscriber "mailer" has not read it; see tasker.event_lag, or give --ignore-subscribers` + "\n"
	if got, want := expect(t, exitDone, "", append(db, "prune", "--older-than", "90d", "--dry-run")...), "would remove 1 tasks, 0 event partitions (0.0 MiB)\n"+held; got != want {
		t.Errorf("the dry run says\n%s\nwant\n%s", got, want)
	}
	expect(t, exitDone, "would remove 2 tasks, 1 event partitions (0.0 MiB)\n  events_20200101\n", append(db, "prune", "--older-than", "90d", "--failed", "--ignore-subscribers", "--dry-run")...)
	if got, want := expect(t, exitDone, "", append(db, "prune", "--older-than", "90d")...), "removed 1 tasks, 0 event partitions (0.0 MiB)\n"+held; !strings.HasSuffix(got, want) {
		t.Errorf("it says\n%s\nwant\n%s", got, want)
	}
	expect(t, exitDone, `"tasks": 1,`, append(db, "prune", "--older-than", "90d", "--events-older-than", "36500d", "--failed", "-o", "json")...)
	expect(t, exitDone, `"partition": "events_20200101",`, append(db, "prune", "--events-older-than", "90d", "--ignore-subscribers", "-o", "json")...)
	expect(t, exitDone, "removed 0 tasks, 0 event partitions (0.0 MiB)\n", append(db, "prune", "--older-than", "1d", "--failed")...)
	expect(t, exitDone, `"task_id": 3`, append(db, "task", "show", "3", "-o", "json")...)
	expect(t, exitNotFound, "task 1", append(db, "task", "show", "1")...)
}
