package main

import (
	"testing"

	"github.com/taskerhq/tasker/testenv"
)

func TestDoctorSaysWhatIsBrokenAndWhatWouldMendIt(t *testing.T) {
	t.Parallel()
	url := testenv.Database(t)
	db := []string{"--database-url", url}
	pool := testenv.Pool(t, url)
	expect(t, exitDone, "registered", append(db, "template", "register", folder(t, map[string]string{"one.yaml": one}))...)
	expect(t, exitDone, "task ", append(db, "task", "enqueue", "test/one")...)

	expect(t, exitUsage, `--since is an age such as 90d, 36h or 30m, up to 36500d, not "soon"`, append(db, "doctor", "--since", "soon")...)
	expect(t, exitUsage, `--limit is a number from 1 to 1000, not 0`, append(db, "doctor", "--limit", "0")...)
	expect(t, exitNotFound, "task 99", append(db, "doctor", "--task", "99")...)
	expect(t, exitDone, "no promise is broken, 0 warnings", append(db, "doctor")...)

	if _, err := pool.Exec(t.Context(), `DELETE FROM tasker.river_job`); err != nil {
		t.Fatal(err)
	}
	for _, more := range [][]string{nil, {"--task", "1"}, {"--since", "0"}} {
		expect(t, exitFailed, "BROKEN   forgotten_task: every open task is owned by a living worker, or something will bring it back\n"+
			"         task 1: it is pending, nobody owns it, and no River job, attempt or limit would bring it back\n"+
			"         → psql", append(append(db, "doctor"), more...)...)
	}
	expect(t, exitFailed, `"task_id": 1,`, append(db, "doctor", "-o", "json")...)
	expect(t, exitFailed, "1 of 18 promises are broken", append(db, "doctor")...)
}
