package worker_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/taskerhq/tasker/migrations"
)

// user creates one that has the role, and returns the URL by which it comes.
func (b *bundle) user(role string) string {
	b.Helper()
	name := fmt.Sprintf("test_%s_%d", role, rand.Uint64())
	return b.newLogin(name, ` IN ROLE `+role)
}

// newLogin makes a login and returns the URL by which it comes.
func (b *bundle) newLogin(name, options string) string {
	b.Helper()
	b.exec(`CREATE ROLE ` + name + ` LOGIN PASSWORD 'a test'` + options)
	b.Cleanup(func() { b.exec(`DROP ROLE ` + name) })
	u, err := url.Parse(b.url)
	b.must(err)
	u.User = url.UserPassword(name, "a test")
	return u.String()
}

// All of a task's life with the rights of the roles alone: an app enqueues, a
// worker and a Sidekiq work, an operator steers.
func TestEachRoleCanDoItsWork(t *testing.T) {
	b := setup(t)
	b.must(migrations.Roles(t.Context(), b.pool))
	b.must(migrations.Roles(t.Context(), b.pool)) // again: nothing changes
	b.registerHalted()
	b.register(oneRubyStep)
	owner := b.url
	app, operator, reader := b.user("tasker_app"), b.user("tasker_operator"), b.user("tasker_reader")
	b.url = b.user("tasker_worker")
	b.worker("--park-after", "20ms")
	b.url = app
	b.sidekiq()
	b.url = owner

	as := func(url, sql string, args ...any) string {
		t.Helper()
		conn, err := pgx.Connect(t.Context(), url)
		b.must(err)
		defer conn.Close(t.Context())
		var answer string
		if err := conn.QueryRow(t.Context(), sql, args...).Scan(&answer); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		return answer
	}
	for range 3 {
		as(app, `INSERT INTO tasker.tasks (namespace, name, context) VALUES ('test', 'halted', '{}') RETURNING task_id::text`)
		as(app, `SELECT tasker.enqueue_task('test', 'halted', '{}')::text`)
	}
	b.finish()
	b.want("6", `SELECT count(*)::text FROM tasker.tasks WHERE state = 'complete'`)
	as(app, `SELECT tasker.publish_event('order.paid', '{}')::text`)
	as(app, `SELECT tasker.subscribe('mailer', '{*}', 'beginning')::text`)
	later := as(app, `INSERT INTO tasker.tasks (namespace, name, run_at) VALUES ('test', 'halted', now() + interval '1 day') RETURNING task_id::text`)
	as(operator, `SELECT tasker.pause_task($1::text::bigint, 'ada')::text`, later)
	as(operator, `SELECT tasker.resume_task($1::text::bigint, 'ada')::text`, later)
	as(operator, `SELECT tasker.cancel_task($1::text::bigint, 'ada')::text`, later)
	as(operator, `SELECT tasker.set_limit('key', 'bank', max_attempts => 2)::text`)
	as(reader, `SELECT count(*)::text FROM tasker.task_summaries`)
	as(reader, `SELECT count(*)::text FROM tasker.step_readiness`)
	as(reader, `SELECT count(*)::text FROM tasker.event_log`)
	as(reader, `SELECT count(*)::text FROM tasker.dead_letter_list`)
	b.healthy()
}

func TestNoRoleCanDoMore(t *testing.T) {
	b := setup(t)
	b.must(migrations.Roles(t.Context(), b.pool))
	b.register(oneGoStep)
	b.enqueue("one", `{}`)
	for role, tries := range map[string][]string{
		"tasker_reader": {
			`INSERT INTO tasker.tasks (namespace, name) VALUES ('test', 'one')`,
			`SELECT tasker.enqueue_task('test', 'one', '{}')`,
			`SELECT tasker.report_results('[]')`,
			`SELECT tasker.publish_event('order.paid', '{}')`,
			`SELECT tasker.cancel_task(1)`,
			`UPDATE tasker.steps SET state = 'complete'`,
			`DELETE FROM tasker.events`,
		},
		"tasker_app": {
			`UPDATE tasker.tasks SET state = 'complete'`,
			`DELETE FROM tasker.tasks`,
			`INSERT INTO tasker.tasks (namespace, name, state, owner) VALUES ('test', 'one', 'complete', 1)`,
			`INSERT INTO tasker.tasks (namespace, name, version, template_id) VALUES ('test', 'one', '1.0.0', 1)`,
			`UPDATE tasker.steps SET result = '{}'`,
			`INSERT INTO tasker.events (task_id, name) VALUES (1, 'task.completed')`,
			`INSERT INTO tasker.river_job (kind, args, max_attempts) VALUES ('task_execution', '{}', 1)`,
			`SELECT tasker.cancel_task(1)`, `SELECT tasker.retry_task(1)`, `SELECT tasker.resolve_task(1)`, `SELECT tasker.skip_step(1)`,
			`SELECT tasker.set_limit('key', 'bank', max_attempts => 1)`, `SELECT tasker.pause('template', 'test/one')`,
			`INSERT INTO tasker.task_templates (namespace, name, version) VALUES ('test', 'mine', '1.0.0')`,
			`SELECT tasker.claim_tasks(1, '{1}')`, `SELECT tasker.reap_worker()`, `SELECT tasker.sweep()`,
			`SELECT pruned FROM tasker.prune_tasks(now(), 10, 0, true)`,
			`CREATE TABLE tasker.mine (x int)`, `DROP TABLE tasker.tasks`, `ALTER TABLE tasker.tasks DISABLE TRIGGER ALL`,
			`CREATE FUNCTION tasker.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'`,
		},
		"tasker_operator": {
			`UPDATE tasker.steps SET state = 'complete'`,
			`INSERT INTO tasker.events (task_id, name) VALUES (1, 'task.completed')`,
			`DELETE FROM tasker.tasks`,
			`SELECT tasker.claim_tasks(1, '{1}')`, `SELECT tasker.reap_worker()`,
			`DROP TABLE tasker.tasks`,
		},
		"tasker_worker": {
			`DROP TABLE tasker.tasks`, `ALTER TABLE tasker.tasks DISABLE TRIGGER ALL`, `CREATE TABLE tasker.mine (x int)`,
			`DELETE FROM tasker.schema_migrations`, `TRUNCATE tasker.tasks`,
			`CREATE ROLE mine`, `GRANT tasker_operator TO tasker_worker`,
		},
	} {
		conn, err := pgx.Connect(t.Context(), b.user(role))
		b.must(err)
		for _, sql := range tries {
			_, err := conn.Exec(t.Context(), sql)
			var refused *pgconn.PgError
			if !errors.As(err, &refused) || refused.Code != "42501" && refused.Code != "0LP01" { // insufficient privilege, or no such grant
				t.Errorf("%s: %s: got %v, want that it may not", role, sql, err)
			}
		}
		b.must(conn.Close(t.Context()))
	}
}

// An app may use its own subscribers, and neither those of another app nor those of
// webhooks.
func TestASubscriberBelongsToItsLogin(t *testing.T) {
	b := setup(t)
	b.must(migrations.Roles(t.Context(), b.pool))
	b.exec(`SELECT tasker.set_webhook('shop', 'https://shop.example/in', '{*}', 'SHOP_SECRET');
		INSERT INTO tasker.event_subscribers (name, patterns, likes, cursor) VALUES ('old', '{*}', '{%}', ROW (0, '{}', '{}', '{}'))`)
	connect := func(role string) *pgx.Conn {
		t.Helper()
		conn, err := pgx.Connect(t.Context(), b.user(role))
		b.must(err)
		t.Cleanup(func() { b.must(conn.Close(context.WithoutCancel(t.Context()))) })
		return conn
	}
	mine, other := connect("tasker_app"), connect("tasker_app")
	ok := func(conn *pgx.Conn, sql string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
	refused := func(conn *pgx.Conn, sql, part string) {
		t.Helper()
		_, err := conn.Exec(t.Context(), sql)
		var pg *pgconn.PgError
		if !errors.As(err, &pg) || pg.Code != "42501" || !strings.Contains(pg.Message, part) {
			t.Errorf("%s: got %v, want that it may not, with %q", sql, err, part)
		}
	}
	uses := func(name string) []string {
		return []string{
			fmt.Sprintf(`SELECT tasker.hold_subscriber('%s', 'h')`, name), fmt.Sprintf(`SELECT tasker.next_events('%s', 'h')`, name),
			fmt.Sprintf(`SELECT tasker.acknowledge_events('%s', 'h', ROW (9, '{}', '{}', '{}')::tasker.event_cursor)`, name),
			fmt.Sprintf(`SELECT tasker.event_failed('%s', 'h', 1, 'no')`, name), fmt.Sprintf(`SELECT tasker.release_subscriber('%s', 'h')`, name),
		}
	}
	owner := mine.Config().User
	ok(mine, `SELECT tasker.subscribe('mailer')`)
	for _, sql := range append(uses("mailer"), `SELECT tasker.subscribe('mailer', '{order.*}')`, `SELECT tasker.unsubscribe('mailer')`,
		`SELECT tasker.set_subscriber_owner('mailer', NULL)`) {
		refused(other, sql, `subscriber "mailer" belongs to `+owner+`,`)
	}
	b.want("{*} <nil>", `SELECT patterns::text || ' ' || coalesce(holder, '<nil>') FROM tasker.event_subscribers WHERE name = 'mailer'`)
	for _, role := range []string{"tasker_app", "tasker_operator", "tasker_worker"} {
		conn := mine
		if role != "tasker_app" {
			conn = connect(role)
		}
		for _, sql := range append(uses("mailer"), `SELECT tasker.subscribe('mailer', '{*}')`) {
			ok(conn, sql)
		}
	}

	// Of the webhook, and names like those of webhooks.
	for _, sql := range append(uses("webhook:shop"), `SELECT tasker.unsubscribe('webhook:shop')`) {
		refused(mine, sql, `subscriber "webhook:shop" belongs to `)
	}
	for _, name := range []string{"webhook:shop", "webhook:mine", "webhook:"} {
		refused(mine, fmt.Sprintf(`SELECT tasker.subscribe('%s')`, name), "belong to webhooks")
	}
	operator := connect("tasker_operator")
	ok(operator, `SELECT tasker.set_webhook('bank', 'https://bank.example/in', '{*}', 'S')`)
	b.want("postgres", `SELECT owner FROM tasker.event_subscribers WHERE name = 'webhook:bank'`)
	refused(operator, `SELECT tasker.subscribe('webhook:none')`, "belong to webhooks")
	if _, err := operator.Exec(t.Context(), `SELECT tasker.unsubscribe('webhook:bank')`); err == nil || !strings.Contains(err.Error(), "belongs to a webhook") {
		t.Errorf("a webhook's subscriber is dropped without the webhook: %v", err)
	}
	ok(operator, `SELECT tasker.remove_webhook('bank')`)

	// From before there were owners: the first that uses it.
	ok(other, `SELECT tasker.hold_subscriber('old', 'h')`)
	refused(mine, `SELECT tasker.unsubscribe('old')`, `belongs to `+other.Config().User)

	// A group of logins.
	b.exec(fmt.Sprintf(`CREATE ROLE %[1]s_group; GRANT %[1]s_group TO %[1]s, %[2]s`, owner, other.Config().User))
	t.Cleanup(func() { b.exec(`DROP ROLE ` + owner + `_group`) })
	ok(mine, fmt.Sprintf(`SELECT tasker.set_subscriber_owner('mailer', '%s_group')`, owner))
	ok(other, `SELECT tasker.unsubscribe('mailer')`)
	b.want("0", `SELECT count(*)::text FROM tasker.event_subscribers WHERE name = 'mailer'`)
}
