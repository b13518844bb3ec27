package main

import (
	"encoding/json"
	"testing"

	"github.com/taskerhq/tasker/server"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/testenv"
)

func TestHealthSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	url := testenv.Database(t)
	db := []string{"--database-url", url, "--redis-url", testenv.Redis(t)}
	expect(t, exitFailed, "failed  worker: no worker is alive: tasker worker starts one", append(db, "health")...)

	pool := testenv.Pool(t, url)
	if _, err := store.New(pool).RegisterWorker(t.Context(), "w", "w", store.ConnectTimeout, map[string]any{}); err != nil {
		t.Fatal(err)
	}
	expect(t, exitDone, "ok      lag: no task waits for a worker\nok      migrations: all applied\nok      redis: answers\nok      worker: takes tasks", append(db, "health")...)
	expect(t, exitFailed, "failed  redis: ", "health", "--database-url", url, "--redis-url", "redis://127.0.0.1:1")

	if _, err := pool.Exec(t.Context(), `INSERT INTO tasker.river_job (kind, args, queue, priority, max_attempts, scheduled_at)
		SELECT 'task_execution', jsonb_build_object('task_id', i), 'default', 1, 1, now() - interval '90 seconds' FROM generate_series(1, 3) i`); err != nil {
		t.Fatal(err)
	}
	expect(t, exitDone, "3 tasks are due, the first for 1m30", append(db, "health")...)
	t.Run("with the most that it may be", func(t *testing.T) {
		file := folder(t, map[string]string{"tasker.yaml": "server: {most_lag: 1m}"}) + "/tasker.yaml"
		expect(t, exitFailed, "the most is 1m0s", append(db, "health", "--config", file)...)
	})
	_, text, _ := command(t, append(db, "health", "-o", "json")...)
	var r server.Readiness
	if err := json.Unmarshal([]byte(text), &r); err != nil || !r.Ready || len(r.Checks) != 5 || r.Checks["database"].Status != "ok" {
		t.Errorf("got %s, %v", text, err)
	}
	expect(t, exitFailed, "migrate up", "health", "--database-url", testenv.EmptyDatabase(t))
}
