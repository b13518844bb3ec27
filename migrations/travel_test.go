package migrations_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskerhq/tasker/testenv"
)

// Every point in time in the schema, and what becomes of it when a test
// travels. shifts: it belongs to tasks, so it goes back (tasker.travel of the
// last migration that has it must say so). stays: it is the clock of something
// that lives now, or tells when something was made.
const (
	shifts = "shifts"
	stays  = "stays"
)

var pointsInTime = map[string]string{
	"dispatches.missing_since": shifts, "tasks.run_at": shifts, "tasks.deadline": shifts, "tasks.paused_at": shifts,
	"tasks.created_at": shifts, "tasks.started_at": shifts, "tasks.finished_at": shifts,
	"steps.retry_at": shifts, "steps.started_at": shifts, "steps.finished_at": shifts,
	"dispatches.looked_at": shifts, "dispatches.started_at": shifts, "dispatches.deadline": shifts,
	"dispatches.start_by": shifts, "dispatches.beat_by": shifts,
	"gates.filled_at": shifts, "gates.paused_at": shifts, "gates.changed_at": shifts,
	"gate_slots.taken_at": shifts,
	"gate_waiters.since":  shifts, "gate_waiters.rank": shifts, "gate_waiters.admitted_until": shifts,
	"events.created_at":     shifts,
	"dead_letters.found_at": shifts, "dead_letters.since": shifts, "dead_letters.resolved_at": shifts,
	"river_job.scheduled_at": shifts, // of jobs that wait to be worked

	"workers.started_at": stays, "workers.last_seen_at": stays, // leases: nobody dies of a journey
	"processes.started_at": stays, "processes.last_seen_at": stays, "processes.stopped_at": stays,
	"event_subscribers.created_at": stays, "event_subscribers.acknowledged_at": stays, "event_subscribers.held_until": stays, // leases
	"event_sleepers.until": stays, "task_waiters.until": stays,
	"event_days.since": stays, "event_days.until": stays, // bounds of partitions
	"task_templates.used_at": stays, "task_templates.registered_at": stays,
	"webhooks.changed_at": stays, "webhook_failures.failed_at": stays, // when an operator, and an address, did something
	"schema_migrations.applied_at": stays,
	"stats.since":                  stays, "stats_slowest.since": stays, "stats_errors.since": stays, // bounds of spans: counted is counted
	"stats_slowest.ended_at": stays, "stats_errors.last_at": stays, "stats_progress.as_of": stays, "stats_progress.rest_until": stays,
	"river_job.attempted_at": stays,                                  // since when a client has it, by which sweep finds those that got lost
	"river_job.created_at":   stays, "river_job.finalized_at": stays, // River keeps rows of finished jobs for a while
	"river_leader.elected_at": stays, "river_leader.expires_at": stays,
	"river_queue.created_at": stays, "river_queue.paused_at": stays, "river_queue.updated_at": stays,
	"river_migration.created_at": stays, "river_notification.created_at": stays,
}

func TestEveryPointInTimeIsKnownToTravel(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t, testenv.Database(t))
	rows, err := pool.Query(t.Context(), `SELECT c.relname || '.' || a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
		WHERE c.relnamespace = 'tasker'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND a.attnum > 0 AND NOT a.attisdropped
		  AND a.atttypid IN ('timestamptz'::regtype, 'timestamp'::regtype) ORDER BY 1`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var found []string
	for rows.Next() {
		var column string
		if err := rows.Scan(&column); err != nil {
			t.Fatal(err)
		}
		found = append(found, column)
		if pointsInTime[column] == "" {
			t.Errorf("%s is a point in time that nobody has classified: add it to pointsInTime, and if it shifts, to tasker.travel", column)
		}
	}
	for column := range pointsInTime {
		if !slices.Contains(found, column) {
			t.Errorf("%s is in pointsInTime, and not in the schema", column)
		}
	}
}

// One row per table, with all of its points in time set, before and after.
func TestTravelMovesWhatBelongsToTasksAndNothingElse(t *testing.T) {
	t.Parallel()
	ctx, pool := t.Context(), testenv.Pool(t, testenv.Database(t))
	exec := func(sql string) {
		t.Helper()
		if _, err := pool.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	exec(`SELECT tasker.register_template('n', 't', '1.0.0', '', '{}', 'c', 1, '[{"position": 0, "name": "s", "handler_class": "H", "attempt_limit": 1}]');
		INSERT INTO tasker.tasks (namespace, name, run_at) VALUES ('n', 't', now() + interval '2 days');
		INSERT INTO tasker.dispatches (step_id, task_id, attempt, queue) VALUES (1, 1, 1, 'default');
		INSERT INTO tasker.gates (scope, name) VALUES ('queue', 'default');
		INSERT INTO tasker.gate_slots (step_id, gate_id, task_id) VALUES (1, 1, 1);
		INSERT INTO tasker.gate_waiters (step_id, gate_id, task_id, rank) VALUES (1, 1, 1, now());
		INSERT INTO tasker.dead_letters (task_id, reason, since, detail, resolved_at, resolution) VALUES (1, 'failed', now(), '', now(), 'moved_on');
		INSERT INTO tasker.workers (name, client_id) VALUES ('w', 'w');
		INSERT INTO tasker.processes (identity) VALUES ('p');
		SELECT tasker.set_webhook('w', 'https://h/x', '{*}', 'S');
		INSERT INTO tasker.webhook_failures (webhook, event_id, event, tries, failure) VALUES ('w', 1, '{}', 1, '');
		INSERT INTO tasker.stats VALUES (5, now(), 1, 0, 'run', 0, 1, 1);
		INSERT INTO tasker.stats_slowest VALUES (now(), 1, 0, 1, 1, now());
		INSERT INTO tasker.stats_errors VALUES (5, now(), 1, 0, 'f', 'c', 'm', 1, 1, now());
		SELECT tasker.subscribe('s'); SELECT tasker.await_task(1, 'c');
		INSERT INTO tasker.event_sleepers (name, channel, likes, until) VALUES ('s', 'c', '{%}', now())`)
	tables := map[string]bool{}
	for column := range pointsInTime {
		table, name, _ := strings.Cut(column, ".")
		if strings.HasPrefix(table, "river_") && table != "river_job" || table == "schema_migrations" {
			continue
		}
		tables[table] = true
		if column != "river_job.finalized_at" { // only a finished job has it
			exec(`UPDATE tasker.` + table + ` SET ` + name + ` = now() + interval '2 days'`)
		}
	}
	exec(`UPDATE tasker.tasks SET paused_at = NULL; UPDATE tasker.processes SET stopped_at = NULL`)
	read := func(table string) map[string]any {
		t.Helper()
		var doc []byte
		if err := pool.QueryRow(ctx, `SELECT to_jsonb(x) FROM tasker.`+table+` x LIMIT 1`).Scan(&doc); err != nil {
			t.Fatalf("%s: %v", table, err)
		}
		var row map[string]any
		if err := json.Unmarshal(doc, &row); err != nil {
			t.Fatal(err)
		}
		return row
	}
	before := map[string]map[string]any{}
	for table := range tables {
		before[table] = read(table)
	}
	travel := func(by string) error {
		_, err := pool.Exec(ctx, `SELECT tasker.travel($1::text::interval)`, by)
		return err
	}
	if err := travel("1 hour"); err == nil || !strings.Contains(err.Error(), "time travel is for test databases, and") {
		t.Fatalf("an unmarked database: got %v", err)
	}
	exec(`SET tasker.testing = on`) // a session can't mark a database
	if err := travel("1 hour"); err == nil {
		t.Fatal("a session marked the database")
	}
	mark(t, pool)
	for _, by := range []string{"-1 s", "101 years"} {
		if err := travel(by); err == nil || !strings.Contains(err.Error(), "time goes forward, by up to 100 years, and not by") {
			t.Errorf("%s: got %v", by, err)
		}
	}
	if err := travel("1 hour"); err != nil {
		t.Fatal(err)
	}
	for table := range tables {
		after := read(table)
		for column, was := range before[table] {
			switch is := after[column]; {
			case pointsInTime[table+"."+column] == shifts && was != nil:
				if moved := at(t, was).Sub(at(t, is)); moved != time.Hour {
					t.Errorf("%s.%s went back by %s", table, column, moved)
				}
			case is == nil && was == nil:
			case asText(t, is) != asText(t, was):
				t.Errorf("%s.%s was %v and is %v", table, column, was, is)
			}
		}
	}
}

func asText(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func at(t *testing.T, v any) time.Time {
	t.Helper()
	moment, err := time.Parse("2006-01-02T15:04:05.999999Z07:00", v.(string))
	if err != nil {
		t.Fatal(err)
	}
	return moment
}

func mark(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	var name string
	if err := pool.QueryRow(t.Context(), `SELECT quote_ident(current_database())`).Scan(&name); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), `ALTER DATABASE `+name+` SET tasker.testing = on`); err != nil {
		t.Fatal(err)
	}
}
