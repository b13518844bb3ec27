package migrations_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskerhq/tasker/migrations"
	"github.com/taskerhq/tasker/testenv"
)

// db runs SQL and compares what it answers.
type db struct {
	*testing.T
	pool *pgxpool.Pool
}

func (d db) exec(sql string) {
	d.Helper()
	if _, err := d.pool.Exec(d.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		d.Fatalf("%s: %v", sql, err)
	}
}

func (d db) want(want, sql string) {
	d.Helper()
	var got string
	if err := d.pool.QueryRow(d.Context(), sql).Scan(&got); err != nil {
		d.Fatalf("%s: %v", sql, err)
	}
	if got != want {
		d.Errorf("%s: got %q, want %q", sql, got, want)
	}
}

// day makes the partition of a day that is past, and is known to be closed or not.
func (d db) day(date string) {
	d.Helper()
	name := "events_" + strings.ReplaceAll(date, "-", "")
	d.exec(fmt.Sprintf(`CREATE TABLE tasker.%s (LIKE tasker.events INCLUDING DEFAULTS, PRIMARY KEY (event_id));
		ALTER TABLE tasker.events ATTACH PARTITION tasker.%[1]s FOR VALUES FROM ('%[2]s 00:00+00') TO (timestamptz '%[2]s 00:00+00' + interval '24 hours');
		INSERT INTO tasker.event_days (partition, since, until) VALUES ('%[1]s', '%[2]s 00:00+00', timestamptz '%[2]s 00:00+00' + interval '24 hours')`, name, date))
}

func (d db) event(at, name string) {
	d.Helper()
	d.exec(fmt.Sprintf(`INSERT INTO tasker.events (task_id, name, created_at) VALUES (1, '%s', '%s 12:00+00')`, name, at))
}

// next are the events that a subscriber gets, and acknowledges.
func (d db) next(subscriber string, most int) string {
	d.Helper()
	var got string
	if err := d.pool.QueryRow(d.Context(), `WITH n AS MATERIALIZED (SELECT * FROM tasker.next_events($1, 'h', $2))
		SELECT coalesce((SELECT string_agg(event, ' ' ORDER BY event_id) FROM n WHERE event_id IS NOT NULL), '')
			|| CASE WHEN (SELECT tasker.acknowledge_events($1, 'h', n.cursor) FROM n WHERE event_id IS NULL) THEN '' ELSE ' not acknowledged' END`,
		subscriber, most).Scan(&got); err != nil {
		d.Fatal(err)
	}
	return got
}

const rowsOf = `SELECT string_agg(concat_ws(' ', event_id, task_id, name, data, created_at AT TIME ZONE 'UTC'), ', ' ORDER BY event_id) FROM tasker.events`

// Events keep their ids, up and down, and new ones go on from there.
func TestEventsSurviveTheirPartitioning(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	d := db{t, testenv.Pool(t, testenv.Database(t))}
	back := 0
	for _, m := range migrations.All() {
		if m.Name == "retention" || back > 0 {
			back++
		}
	}
	down := func() {
		t.Helper()
		if _, err := migrations.Down(ctx, d.pool, back, false); err != nil {
			t.Fatal(err)
		}
	}
	down()
	d.exec(`INSERT INTO tasker.events (task_id, name, data, created_at) VALUES (1, 'a', '{"x": 1}', '2020-01-01 12:00+00'), (NULL, 'gate.paused', NULL, '2021-01-01 12:00+00');
		INSERT INTO tasker.events (task_id, name, created_at) VALUES (2, 'ahead', '2030-05-05 12:00+00'); DELETE FROM tasker.events WHERE name = 'ahead';
		SELECT tasker.subscribe('s', '{*}', 'beginning')`)
	const rows = `1 1 a {"x": 1} 2020-01-01 12:00:00, 2 gate.paused 2021-01-01 12:00:00`
	d.want(rows, rowsOf)
	up(t, d.pool)
	d.want(rows, rowsOf)
	d.want("2", `SELECT count(*)::text FROM tasker.events_old`)
	d.exec(`INSERT INTO tasker.events (task_id, name, created_at) VALUES (3, 'b', '2022-01-01 12:00+00'); INSERT INTO tasker.events (name, created_at) VALUES ('later', '2099-01-01 12:00+00')`)
	const more = rows + `, 4 3 b 2022-01-01 12:00:00, 5 later 2099-01-01 12:00:00`
	d.want(more, rowsOf)
	if got := d.next("s", 10); got != "a gate.paused b later" {
		t.Errorf("a subscriber got %q", got)
	}
	down()
	d.want(more, rowsOf)
	d.exec(`INSERT INTO tasker.events (name, created_at) VALUES ('c', '2022-01-01 12:00+00')`)
	d.want("6", `SELECT max(event_id)::text FROM tasker.events`)

	// Also when there are rows of the future, for which tomorrow is no bound.
	up(t, d.pool)
	d.want("5", `SELECT count(*)::text FROM tasker.events_old`)
}

func TestAnEventGoesToItsDayOrElseToTheDefaultPartition(t *testing.T) {
	t.Parallel()
	d := db{t, testenv.Pool(t, testenv.Database(t))}
	const where = `SELECT replace(tableoid::regclass::text, 'tasker.', '') FROM tasker.events ORDER BY event_id DESC LIMIT 1`
	d.exec(`INSERT INTO tasker.events (name) VALUES ('now')`)
	var today string
	if err := d.pool.QueryRow(t.Context(), `SELECT 'events_' || to_char(created_at AT TIME ZONE 'UTC', 'YYYYMMDD') FROM tasker.events`).Scan(&today); err != nil {
		t.Fatal(err)
	}
	d.want(today, where)
	d.exec(`SET TIME ZONE 'Asia/Tokyo'; INSERT INTO tasker.events (name, created_at) VALUES ('soon', date_trunc('day', now(), 'UTC') + interval '1 day' - interval '1 microsecond')`)
	d.want(today, where)
	d.exec(`INSERT INTO tasker.events (name, created_at) VALUES ('far', now() + interval '5 days')`)
	d.want("events_default", where)

	// The day that has a row in the default partition does without its own.
	d.want("4", `SELECT count(*)::text FROM tasker.event_days`)
	d.want("2", `SELECT tasker.make_event_days(6)::text`)
	d.want("0", `SELECT tasker.make_event_days(6)::text`)
	d.exec(`INSERT INTO tasker.events (name, created_at) VALUES ('far', now() + interval '5 days')`)
	d.want("events_default", where)
	d.exec(`INSERT INTO tasker.events (name, created_at) VALUES ('farther', now() + interval '6 days')`)
	d.want("t", `SELECT CASE WHEN tableoid = 'tasker.events_default'::regclass THEN 'default' ELSE 't' END FROM tasker.events WHERE name = 'farther'`)
	d.want("1 2 3 4 5", `SELECT string_agg(event_id::text, ' ' ORDER BY event_id) FROM tasker.events`)
}

// Over the borders of days in the order of ids, which is not that of days; over
// closed days, days that are not there any more, and what commits late.
func TestASubscriberReadsOverDays(t *testing.T) {
	t.Parallel()
	d := db{t, testenv.Pool(t, testenv.Database(t))}
	d.exec(`SELECT tasker.subscribe('s', '{*}', 'beginning'); SELECT tasker.subscribe('some', '{c.*}', 'beginning')`)
	for _, day := range []string{"2020-01-01", "2020-01-02", "2020-01-03"} {
		d.day(day)
	}
	late, err := d.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = late.Rollback(context.WithoutCancel(t.Context())) }()
	d.event("2020-01-01", "a.x")
	d.event("2020-01-02", "b.x")
	if _, err := late.Exec(t.Context(), `INSERT INTO tasker.events (name, created_at) VALUES ('late.x', '2020-01-01 13:00+00')`); err != nil {
		t.Fatal(err)
	}
	d.event("2020-01-01", "c.x")
	d.event("2019-01-01", "c.default") // no partition
	d.event("2020-01-03", "d.x")
	if got := d.next("s", 3); got != "a.x b.x c.x" {
		t.Errorf("the first batch is %q", got)
	}
	// The days are over, but a transaction that was open then still is.
	d.want("0", `SELECT tasker.close_event_days()::text`)
	d.want("0", `SELECT tasker.close_event_days()::text`)
	d.want("3", `SELECT count(open_then)::text FROM tasker.event_days`)
	if got := d.next("s", 3); got != "c.default d.x" {
		t.Errorf("the second batch is %q", got)
	}
	if err := late.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.want("3", `SELECT tasker.close_event_days()::text`)
	d.want("4 2 6", `SELECT string_agg(last_id::text, ' ' ORDER BY since) FROM tasker.event_days WHERE last_id IS NOT NULL`)
	if got := d.next("s", 3); got != "late.x" {
		t.Errorf("what committed late: got %q", got)
	}
	d.want("t", `SELECT CASE WHEN tasker.unread_since(7) = date_trunc('day', now(), 'UTC') THEN 't' ELSE tasker.unread_since(7)::text END`)
	d.want("2020-01-03 00:00:00", `SELECT (tasker.unread_since(6) AT TIME ZONE 'UTC')::text`)
	d.want("2019-01-01 12:00:00", `SELECT (tasker.unread_since(5) AT TIME ZONE 'UTC')::text`)

	// A day that one of them had not read is gone: it goes on with the next.
	d.want("events_20200101", `SELECT partition FROM tasker.prune_events('2020-01-02 00:00+00', true)`)
	if got := d.next("some", 10); got != "c.default" {
		t.Errorf("after a day that was dropped: got %q", got)
	}
	d.event("2019-01-01", "c.again")
	d.exec(`INSERT INTO tasker.events (name) VALUES ('c.today')`)
	for _, subscriber := range []string{"s", "some"} {
		if got := d.next(subscriber, 10); got != "c.again c.today" {
			t.Errorf("%s: what is new: got %q", subscriber, got)
		}
	}
}

func TestPruneEventsKeepsWhatIsUnreadAndWhatIsNotOld(t *testing.T) {
	t.Parallel()
	d := db{t, testenv.Pool(t, testenv.Database(t))}
	d.exec(`SELECT tasker.subscribe('fast', '{*}', 'beginning'); SELECT tasker.subscribe('slow', '{*}', 'beginning')`)
	for _, day := range []string{"2020-01-01", "2020-01-02", "2020-01-03"} {
		d.day(day)
		d.event(day, "x.x")
	}
	d.event("2019-01-01", "old.default")
	d.event("2020-01-05", "younger.default")
	if got := d.next("fast", 10); got != strings.Repeat("x.x ", 3)+"old.default younger.default" {
		t.Errorf("got %q", got)
	}
	const held = `SELECT string_agg(concat_ws(' ', partition, held_by), ', ') FROM tasker.old_events('2020-01-03 12:00+00')`
	const prune = `SELECT concat_ws(' ', 'done', partition, rows) FROM tasker.prune_events('2020-01-03 12:00+00')`
	d.want("events_default slow, events_20200101 slow, events_20200102 slow", held)
	d.want("done 0", prune)
	if got := d.next("slow", 1); got != "x.x" {
		t.Errorf("got %q", got)
	}
	d.want("events_default slow, events_20200101, events_20200102 slow", held)
	d.want("done events_20200101", prune)
	d.want("done 0", prune)
	d.want("2 3 4 5", `SELECT string_agg(event_id::text, ' ' ORDER BY event_id) FROM tasker.events`)
	d.next("slow", 10)
	d.want("done events_20200102", prune)
	d.want("done events_default 1", prune)
	d.want("done 0", prune)
	d.want("3 5", `SELECT string_agg(event_id::text, ' ' ORDER BY event_id) FROM tasker.events`)

	// A writer is not kept waiting for long: the dropper gives up.
	writer, err := d.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = writer.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := writer.Exec(t.Context(), `INSERT INTO tasker.events (name) VALUES ('x.x')`); err != nil {
		t.Fatal(err)
	}
	if _, err := d.pool.Exec(t.Context(), `SELECT tasker.prune_events('2020-02-01 00:00+00')`); err == nil || !strings.Contains(err.Error(), "55P03") {
		t.Errorf("while somebody writes: got %v", err)
	}
	if _, err := d.pool.Exec(t.Context(), `SELECT tasker.prune_events(now() + interval '1 hour')`); err == nil || !strings.Contains(err.Error(), "before a time in the past") {
		t.Errorf("the future: got %v", err)
	}
}

func TestPruneTasksKeepsWhatIsOpenOrBelongsToWhatIs(t *testing.T) {
	t.Parallel()
	d := db{t, testenv.Pool(t, testenv.Database(t))}
	d.exec(`SELECT tasker.register_template('n', 't', '1.0.0', '', '{}', 'c', 1, '[{"position": 0, "name": "s", "handler": "h", "attempt_limit": 1}]');
		INSERT INTO tasker.tasks (namespace, name, parent_task_id) VALUES ('n', 't', NULL), ('n', 't', NULL), ('n', 't', NULL), ('n', 't', NULL), ('n', 't', NULL),
			('n', 't', 2), ('n', 't', NULL), ('n', 't', 7), ('n', 't', 9);
		ALTER TABLE tasker.tasks DISABLE TRIGGER refuse_transition;
		UPDATE tasker.tasks SET created_at = '2020-01-01', finished_at = '2020-01-02', state = 'complete';
		UPDATE tasker.tasks SET state = 'pending', finished_at = NULL WHERE task_id IN (1, 6, 7); -- 6 is a child of 2, 7 the parent of 8
		UPDATE tasker.tasks SET state = 'error' WHERE task_id = 3;
		UPDATE tasker.tasks SET state = 'cancelled' WHERE task_id = 4;
		UPDATE tasker.tasks SET finished_at = now() WHERE task_id = 5;
		INSERT INTO tasker.dead_letters (task_id, reason, since, detail) VALUES (4, 'failed', now(), '');
		INSERT INTO tasker.dispatches (step_id, task_id, attempt, queue) SELECT step_id, task_id, 1, 'default' FROM tasker.steps WHERE task_id IN (3, 4);
		INSERT INTO tasker.task_waiters (task_id, channel, until) VALUES (4, 'c', now())`)
	const prune = `SELECT concat_ws(' ', pruned, page_end) FROM tasker.prune_tasks('2020-01-03', %s)`
	const left = `SELECT concat_ws('; ', (SELECT string_agg(task_id::text, ' ' ORDER BY task_id) FROM tasker.tasks), (SELECT string_agg(task_id::text, ' ' ORDER BY task_id) FROM tasker.steps),
		(SELECT string_agg(task_id::text, ' ') FROM tasker.dispatches), (SELECT count(*) FROM tasker.dead_letters), (SELECT count(*) FROM tasker.task_waiters))`
	d.want("0 2", fmt.Sprintf(prune, "2"))
	d.want("1 4", fmt.Sprintf(prune, "2, 2"))
	d.want("1 2 3 5 6 7 8 9; 1 2 3 5 6 7 8 9; 3; 0; 0", left)

	// What somebody has locked is left out.
	tx, err := d.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := tx.Exec(t.Context(), `SELECT FROM tasker.tasks WHERE task_id = 9 FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	d.want("0", fmt.Sprintf(prune, "100"))
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.want("1", fmt.Sprintf(prune, "100"))
	d.want("1", fmt.Sprintf(prune, "100, 0, true"))
	d.want("1 2 5 6 7 8; 1 2 5 6 7 8; 0; 0", left)

	// A page of tasks that were all inserted later is the last.
	d.exec(`INSERT INTO tasker.tasks (namespace, name) SELECT 'n', 't' FROM generate_series(1, 4)`)
	d.want("0 8", fmt.Sprintf(prune, "6"))
	d.want("0", fmt.Sprintf(prune, "2, 8"))

	// One at a time.
	other, err := d.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := other.Exec(t.Context(), `SELECT tasker.prune_tasks('2020-01-03')`); err != nil {
		t.Fatal(err)
	}
	for _, call := range []string{`prune_tasks('2020-01-03')`, `prune_events('2020-01-03')`} {
		if _, err := d.pool.Exec(t.Context(), `SELECT tasker.`+call); err == nil || !strings.Contains(err.Error(), "somebody else is pruning") {
			t.Errorf("%s while another does: got %v", call, err)
		}
	}
}
