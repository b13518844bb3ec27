package worker_test

import (
	"strconv"
	"strings"
	"testing"

	"github.com/taskerhq/tasker/store"
)

// healthy holds the database against all that is promised.
func (b *bundle) healthy() {
	b.Helper()
	b.promised("", store.ExamineOptions{})
}

// promised holds what the options say against what is promised. Warnings are for
// people: a test may well have no worker.
func (b *bundle) promised(when string, o store.ExamineOptions) {
	b.Helper()
	all, err := b.store.Examine(b.Context(), o)
	b.must(err)
	for i := range all {
		if all[i].Broken() {
			for _, f := range all[i].Findings {
				b.Errorf("%s%s: %s", when, all[i].Name, f)
			}
		}
	}
}

// What breaks each promise. Nothing in the product does these things, so they are
// written past the guards.
var plants = map[string]string{
	"forgotten_task": `UPDATE tasker.tasks SET state = 'in_progress', owner = NULL, finished_at = NULL WHERE task_id = $1`,
	"result_twice": `INSERT INTO tasker.events (task_id, step_id, attempt, name)
		SELECT task_id, step_id, attempts, 'step.completed' FROM tasker.steps WHERE task_id = $1 AND name = 'b'`,
	"result_of_another_attempt": `UPDATE tasker.steps SET attempts = attempts + 1 WHERE task_id = $1 AND name = 'b'`,
	"started_too_early":         `UPDATE tasker.steps SET state = 'pending' WHERE task_id = $1 AND name = 'a'`,
	"too_many_attempts":         `UPDATE tasker.steps SET attempts = 99 WHERE task_id = $1 AND name = 'b'`,
	"retried_too_early":         `UPDATE tasker.events SET data = data || '{"retry_in_seconds": 60}' WHERE task_id = $1 AND name = 'step.retry_requested'`,
	"broken_history":            `DELETE FROM tasker.events WHERE task_id = $1 AND name = 'step.handle'`,
	"wrong_outcome":             `UPDATE tasker.steps SET state = 'error' WHERE task_id = $1 AND name = 'b'`,
	"moved_after_the_end": `INSERT INTO tasker.events (task_id, step_id, attempt, name)
		SELECT task_id, step_id, attempts + 1, 'step.handle' FROM tasker.steps WHERE task_id = $1 AND name = 'b'`,
	"orphan":       `INSERT INTO tasker.dispatches (step_id, task_id, attempt, queue) SELECT step_id, task_id, attempts, 'default' FROM tasker.steps WHERE task_id = $1 AND name = 'b'`,
	"torn_enqueue": `DELETE FROM tasker.steps WHERE task_id = $1 AND name = 'b'`,
	"no_worker":    `UPDATE tasker.tasks SET state = 'in_progress', created_at = now() - interval '1 minute' WHERE task_id = $1`,
	"given_up_job": `WITH open AS (UPDATE tasker.tasks SET state = 'in_progress' WHERE task_id = $1 RETURNING task_id)
		UPDATE tasker.river_job j SET state = 'discarded', errors = ARRAY['{"error": "planted"}'::jsonb] FROM open WHERE (j.args ->> 'task_id')::bigint = open.task_id`,
	"events_without_a_day": `INSERT INTO tasker.events (task_id, name, created_at) VALUES ($1, 'task.run_now', now() + interval '30 days')`,
	"rights": `DO $$ BEGIN
		BEGIN CREATE ROLE tasker_worker; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END;
		GRANT USAGE ON SCHEMA tasker TO tasker_worker; END $$`, // and any login may call the functions
	"sequence_behind":    `ALTER SEQUENCE tasker.workers_worker_id_seq RESTART WITH 1`,
	"notification_queue": ``, // would take 800 MB of notifications
	"old_snapshot":       ``, // would take ten minutes; its statement is run by every examination
}

// Each check finds what it is for, names it, and says what to do; and a database
// that was only worked with passes all of them.
func TestTheDoctorFindsWhatIsBroken(t *testing.T) {
	for _, check := range store.Checks {
		plant, known := plants[check.Name]
		if !known {
			t.Errorf("nothing shows that %s finds anything", check.Name)
		}
		if plant == "" {
			continue
		}
		t.Run(check.Name, func(t *testing.T) {
			b := setup(t)
			b.register(`
name: planted
namespace_name: test
step_templates:
  - {name: a, handler: tasker.fail, handler_config: {times: 1}, retry: {base_seconds: 0.01}}
  - {name: b, handler: tasker.echo, depends_on_step: a}`)
			stop := b.start()
			b.enqueueMany("planted", `{}`, 3)
			b.finish()
			stop()
			b.healthy()
			task := int64(b.number(`SELECT min(task_id) FROM tasker.tasks`))
			tx, err := b.pool.Begin(t.Context())
			b.must(err)
			for _, sql := range []string{`SET LOCAL session_replication_role = replica`, strings.ReplaceAll(plant, "$1", strconv.FormatInt(task, 10))} {
				_, err = tx.Exec(t.Context(), sql)
				b.must(err)
			}
			b.must(tx.Commit(t.Context()))
			all, err := b.store.Examine(t.Context(), store.ExamineOptions{})
			b.must(err)
			for _, e := range all {
				if e.Name != check.Name {
					continue
				}
				if len(e.Findings) == 0 {
					t.Fatalf("%s found nothing", check.Name)
				}
				f := e.Findings[0]
				t.Logf("%s → %s", f, f.Command)
				if f.TaskID != nil && *f.TaskID != task {
					t.Errorf("it names task %d, not %d", *f.TaskID, task)
				}
				if f.Detail == "" || f.Command == "" || strings.Contains(f.Command, "{") {
					t.Errorf("it says %q → %q", f.Detail, f.Command)
				}
			}
		})
	}
}
