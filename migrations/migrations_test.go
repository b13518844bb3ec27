package migrations_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/devstack"
	"github.com/taskerhq/tasker/migrations"
	"github.com/taskerhq/tasker/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

var update = flag.Bool("update", false, "write docs/schema.sql anew")

func TestUpAndDownAndUpAgain(t *testing.T) {
	t.Parallel()
	ctx, pool := t.Context(), testenv.Pool(t, testenv.EmptyDatabase(t))
	if err := migrations.Check(ctx, pool); !errors.Is(err, migrations.ErrNotMigrated) || !strings.Contains(err.Error(), "run: tasker migrate up") {
		t.Errorf("an empty database: got %v", err)
	}
	up(t, pool)
	up(t, pool) // nothing to do
	whole := schema(t, pool)

	undone, err := migrations.Down(ctx, pool, 1, false)
	if err != nil || len(undone) != 1 {
		t.Fatalf("one step down: got %v, %v", undone, err)
	}
	if err := migrations.Check(ctx, pool); !errors.Is(err, migrations.ErrNotMigrated) || !strings.Contains(err.Error(), "lacks migrations [") {
		t.Errorf("a migration short: got %v", err)
	}
	up(t, pool)
	if again := schema(t, pool); again != whole {
		t.Errorf("one step down and up again changes the schema:\n%s", difference(whole, again))
	}

	if _, err := migrations.Down(ctx, pool, len(migrations.All()), false); err != nil {
		t.Fatal(err)
	}
	if rest := relations(t, pool); rest != "river_job river_leader river_migration river_notification river_queue schema_migrations" {
		t.Errorf("with all our migrations taken back there is still: %s", rest)
	}
	if _, err := migrations.Down(ctx, pool, 0, true); err != nil {
		t.Fatal(err)
	}
	if rest := relations(t, pool); rest != "" {
		t.Errorf("with everything taken back there is still: %s", rest)
	}
	up(t, pool)
	if again := schema(t, pool); again != whole {
		t.Errorf("all down and up again changes the schema:\n%s", difference(whole, again))
	}
}

// Each migration leaves behind, when it is taken back, what was there before it:
// also the functions and views that it had replaced.
func TestEachMigrationTakesBackWhatItDid(t *testing.T) {
	t.Parallel()
	ctx, pool := t.Context(), testenv.Pool(t, testenv.EmptyDatabase(t))
	up(t, pool)
	all := migrations.All()
	if _, err := migrations.Down(ctx, pool, len(all), false); err != nil {
		t.Fatal(err) // only River's schema is left
	}
	before := make([]string, len(all))
	for i, m := range all {
		before[i] = schema(t, pool)
		if _, err := pool.Exec(ctx, m.Up+migrations.Secure()); err != nil {
			t.Fatalf("%04d %s up: %v", m.Version, m.Name, err)
		}
	}
	for i, m := range slices.Backward(all) {
		if _, err := pool.Exec(ctx, m.Down+migrations.Secure()); err != nil {
			t.Fatalf("%04d %s down: %v", m.Version, m.Name, err)
		}
		if after := schema(t, pool); after != before[i] {
			t.Errorf("%04d %s, taken back, leaves another schema than it found:\n%s", m.Version, m.Name, difference(before[i], after))
		}
	}
}

func TestTenMachinesMayMigrateAtOnce(t *testing.T) {
	t.Parallel()
	url := testenv.EmptyDatabase(t)
	var all sync.WaitGroup
	for range 10 {
		pool := testenv.Pool(t, url)
		all.Go(func() {
			if err := migrations.Up(context.Background(), pool); err != nil {
				t.Errorf("one of ten: %v", err)
			}
		})
	}
	all.Wait()
	if err := migrations.Check(t.Context(), testenv.Pool(t, url)); err != nil {
		t.Error(err)
	}
}

// Transactions of the application that are open when a migration comes, and go
// on to other tables, wait for it for a moment at most, and none is ended, in
// whatever order they come to the tables.
func TestAMigrationGivesWayToTheApplication(t *testing.T) {
	t.Parallel()
	ctx, pool := t.Context(), testenv.Pool(t, testenv.Database(t))
	conn, err := pgx.Connect(ctx, pool.Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	begin := func() pgx.Tx {
		tx, err := pool.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return tx
	}
	await := func(table, mode string) {
		t.Helper()
		for waiting := false; !waiting; {
			if err := pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
				WHERE c.oid = $1::regclass AND l.mode = $2 AND NOT l.granted)`, "tasker."+table, mode).Scan(&waiting); err != nil {
				t.Fatal(err)
			}
		}
	}
	must := func(tx pgx.Tx, sql string) {
		t.Helper()
		if _, err := tx.Exec(ctx, sql); err != nil {
			t.Error(err)
		}
	}

	first, second := begin(), begin()
	must(first, `LOCK TABLE tasker.tasks IN ROW EXCLUSIVE MODE`)
	must(second, `LOCK TABLE tasker.workers IN ROW EXCLUSIVE MODE`)
	migrated := make(chan error, 1)
	go func() {
		migrated <- migrations.Apply(ctx, conn, `COMMENT ON TABLE tasker.tasks IS 'a'; COMMENT ON TABLE tasker.workers IS 'b';
			CREATE FUNCTION tasker.made() RETURNS bigint LANGUAGE sql AS $$ SELECT count(*) FROM tasker.steps $$`, `SELECT 1`)
	}()
	await("tasks", "AccessExclusiveLock")
	// The second waits behind the migration, which then has what the second wants,
	// and wants what the second has.
	behind := make(chan struct{})
	go func() {
		defer close(behind)
		must(second, `LOCK TABLE tasker.tasks IN ROW EXCLUSIVE MODE`)
	}()
	await("tasks", "RowExclusiveLock")
	must(first, `LOCK TABLE tasker.steps IN ACCESS EXCLUSIVE MODE`) // that is no table of the migration
	if err := first.Commit(ctx); err != nil {
		t.Error(err)
	}
	<-behind
	if err := second.Commit(ctx); err != nil {
		t.Error(err)
	}
	if err := <-migrated; err != nil {
		t.Error(err)
	}
	var made string
	if err := pool.QueryRow(ctx, `SELECT obj_description('tasker.workers'::regclass)`).Scan(&made); err != nil || made != "b" {
		t.Errorf("the migration has made %q: %v", made, err)
	}
}

func TestADatabaseThatIsNewerIsLeftAlone(t *testing.T) {
	t.Parallel()
	ctx, pool := t.Context(), testenv.Pool(t, testenv.Database(t))
	if _, err := pool.Exec(ctx, `INSERT INTO tasker.schema_migrations (version, name) VALUES (9999, 'from_the_future')`); err != nil {
		t.Fatal(err)
	}
	_, down := migrations.Down(ctx, pool, 1, false)
	_, dry := migrations.DryRun(ctx, pool)
	for what, err := range map[string]error{"check": migrations.Check(ctx, pool), "up": migrations.Up(ctx, pool), "down": down, "dry run": dry} {
		if !errors.Is(err, migrations.ErrNewer) || !strings.Contains(err.Error(), "[9999]; install the release that made them") {
			t.Errorf("%s: got %v", what, err)
		}
	}
}

// What --dry-run prints is what up does.
func TestTheDryRunMakesTheSameSchema(t *testing.T) {
	t.Parallel()
	ctx, pool := t.Context(), testenv.Pool(t, testenv.EmptyDatabase(t))
	sql, err := migrations.DryRun(ctx, pool)
	if err != nil {
		t.Fatal(err)
	}
	if rest := relations(t, pool); rest != "" {
		t.Fatalf("the dry run made: %s", rest)
	}
	conn, err := pool.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := conn.Conn().PgConn().Exec(ctx, sql).ReadAll(); err != nil {
		t.Fatalf("the SQL of the dry run: %v", err)
	}
	up := testenv.Pool(t, testenv.Database(t))
	if got, want := schema(t, pool), schema(t, up); got != want {
		t.Errorf("the SQL of the dry run makes another schema:\n%s", difference(want, got))
	}
}

// A migration that fails leaves nothing of itself, and says which it was.
func TestAFailedMigrationLeavesNothingOfItself(t *testing.T) {
	t.Parallel()
	ctx, pool := t.Context(), testenv.Pool(t, testenv.Database(t))
	all := migrations.All()
	views := slices.IndexFunc(all, func(m migrations.Migration) bool { return m.Name == "views" })
	if _, err := migrations.Down(ctx, pool, len(all)-views, false); err != nil {
		t.Fatal(err)
	}
	before := schema(t, pool)
	// Something of that name is in the way of that migration's last object.
	if _, err := pool.Exec(ctx, `CREATE TABLE tasker.step_dependencies (x int)`); err != nil {
		t.Fatal(err)
	}
	if err := migrations.Up(ctx, pool); err == nil || !strings.Contains(err.Error(), "(views)") {
		t.Fatalf("got %v", err)
	}
	if _, err := pool.Exec(ctx, `DROP TABLE tasker.step_dependencies`); err != nil {
		t.Fatal(err)
	}
	if after := schema(t, pool); after != before {
		t.Errorf("the failed migration left something:\n%s", difference(before, after))
	}
	up(t, pool)
}

// The state machines exist twice, in Go and in SQL; they must be one.
func TestTheGuardsInSQLAreTheTransitionsInGo(t *testing.T) {
	t.Parallel()
	ctx, pool := t.Context(), testenv.Pool(t, testenv.Database(t))
	if _, err := pool.Exec(ctx, oneTask); err != nil {
		t.Fatal(err)
	}
	check := func(kind, was, becomes string, inGo bool) {
		t.Helper()
		tx, err := pool.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback(ctx) }() // whatever is asked, all stays as it was
		var may bool
		if err := tx.QueryRow(ctx, `SELECT tasker.`+kind+`_may_become($1, $2)`, was, becomes).Scan(&may); err != nil {
			t.Fatal(err)
		}
		if may != inGo {
			t.Errorf("%s %s → %s: SQL %t, Go %t", kind, was, becomes, may, inGo)
		}
		if was == becomes {
			return
		}
		update := `UPDATE tasker.` + kind + `s SET state = '`
		if _, err := tx.Exec(ctx, `SET LOCAL session_replication_role = replica; `+update+was+`'; SET LOCAL session_replication_role = origin`); err != nil {
			t.Fatal(err)
		}
		_, err = tx.Exec(ctx, update+becomes+`'`)
		if pg := new(pgconn.PgError); err != nil && !(errors.As(err, &pg) && pg.Code == "TK006") {
			t.Fatal(err)
		}
		if (err == nil) != inGo {
			t.Errorf("%s %s → %s: the trigger says %v, Go %t", kind, was, becomes, err, inGo)
		}
	}
	tasks := []tasker.TaskState{tasker.TaskPending, tasker.TaskInProgress, tasker.TaskComplete, tasker.TaskError, tasker.TaskCancelled, tasker.TaskResolvedManually}
	for _, was := range tasks {
		for _, becomes := range tasks {
			check("task", string(was), string(becomes), was.CanBecome(becomes))
		}
	}
	steps := []tasker.StepState{tasker.StepPending, tasker.StepEnqueued, tasker.StepInProgress, tasker.StepWaitingForRetry, tasker.StepComplete,
		tasker.StepError, tasker.StepCancelled, tasker.StepSkipped, tasker.StepResolvedManually}
	for _, was := range steps {
		for _, becomes := range steps {
			check("step", string(was), string(becomes), was.CanBecome(becomes))
		}
	}
}

const oneTask = `
	SELECT tasker.register_template('n', 't', '1.0.0', '', '{}', 'c', 1, '[{"position": 0, "name": "s", "handler": "h", "attempt_limit": 1}]');
	INSERT INTO tasker.tasks (namespace, name) VALUES ('n', 't')`

// An update along an edge that does not exist is refused, whoever sends it.
func TestAnIllegalTransitionIsRefusedByTheDatabase(t *testing.T) {
	t.Parallel()
	ctx, pool := t.Context(), testenv.Pool(t, testenv.Database(t))
	if _, err := pool.Exec(ctx, oneTask); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ sql, want string }{
		{`UPDATE tasker.tasks SET state = 'complete'`, "task 1 cannot go from pending to complete"},
		{`UPDATE tasker.steps SET state = 'waiting_for_retry'`, "step 1 cannot go from pending to waiting_for_retry"},
		{`UPDATE tasker.steps SET state = 'finished'`, "cannot go from pending to finished"},
	} {
		if _, err := pool.Exec(ctx, c.sql); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v", c.sql, err)
		}
	}
}

// docs/schema.sql is the schema for people to read.
func TestTheSchemaDumpIsCurrent(t *testing.T) {
	t.Parallel()
	bin, err := devstack.FindPostgres()
	if err != nil {
		t.Fatal(err)
	}
	pool := testenv.Pool(t, testenv.Database(t))
	var server string
	if err := pool.QueryRow(t.Context(), `SHOW server_version_num`).Scan(&server); err != nil {
		t.Fatal(err)
	}
	const writtenBy = "15" // other versions of pg_dump write the same schema in other words
	if server[:2] != writtenBy {
		t.Skipf("docs/schema.sql is written with Postgres %s, this is %s", writtenBy, server)
	}
	out, err := exec.CommandContext(t.Context(), filepath.Join(bin, "pg_dump"), "--schema-only", "--schema=tasker", "--no-owner", "--no-privileges",
		"--exclude-table=tasker.events_2*", // the days: others tomorrow
		"--dbname="+pool.Config().ConnString()).Output()
	if err != nil {
		t.Fatalf("pg_dump: %v", err)
	}
	// The lines that name versions, and the random key of psql's \restrict.
	noise := regexp.MustCompile(`(?m)^(-- Dumped .*|\\(un)?restrict .*|SET .*|SELECT pg_catalog.set_config.*)\n`)
	dump := "-- The schema as `tasker migrate up` makes it, River's tables included.\n-- Written by `make docs`; a test keeps it current.\n" +
		regexp.MustCompile(`\n{3,}`).ReplaceAllString(noise.ReplaceAllString(string(out), ""), "\n\n")
	const file = "../docs/schema.sql"
	if *update {
		if err := os.WriteFile(file, []byte(dump), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	written, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(written) != dump {
		t.Errorf("docs/schema.sql is not current; run: make docs\n%s", difference(string(written), dump))
	}
}

func up(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	if err := migrations.Up(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	if err := migrations.Check(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
}

// schema describes what is in schema tasker, without the times of migrations.
func schema(t *testing.T, pool *pgxpool.Pool) string {
	t.Helper()
	var text string
	if err := pool.QueryRow(t.Context(), `SELECT string_agg(line, E'\n' ORDER BY line) FROM (
		SELECT format('column %s.%s %s %s %s', table_name, column_name, data_type, is_nullable, column_default) AS line FROM information_schema.columns WHERE table_schema = 'tasker'
		UNION ALL SELECT 'index ' || indexdef FROM pg_indexes WHERE schemaname = 'tasker'
		UNION ALL SELECT format('constraint %s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid)) FROM pg_constraint WHERE connamespace = 'tasker'::regnamespace
		UNION ALL SELECT 'function ' || pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'tasker'::regnamespace
		UNION ALL SELECT 'trigger ' || pg_get_triggerdef(g.oid) FROM pg_trigger g JOIN pg_class c ON c.oid = tgrelid WHERE relnamespace = 'tasker'::regnamespace AND NOT tgisinternal
		UNION ALL SELECT format('view %s %s', viewname, definition) FROM pg_views WHERE schemaname = 'tasker'
		UNION ALL SELECT format('comment %s %s', objoid::regclass, description) FROM pg_description JOIN pg_class c ON c.oid = objoid WHERE relnamespace = 'tasker'::regnamespace) x`).Scan(&text); err != nil {
		t.Fatal(err)
	}
	return text
}

func relations(t *testing.T, pool *pgxpool.Pool) string {
	t.Helper()
	var names string
	if err := pool.QueryRow(t.Context(), `SELECT coalesce(string_agg(relname, ' ' ORDER BY relname), '') FROM pg_class
		WHERE relnamespace = to_regnamespace('tasker') AND relkind IN ('r', 'v')`).Scan(&names); err != nil {
		t.Fatal(err)
	}
	return names
}

// difference shows the first lines that differ.
func difference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range min(len(w), len(g)) {
		if w[i] != g[i] {
			return "- " + w[i] + "\n+ " + g[i]
		}
	}
	return fmt.Sprintf("one has %d lines, the other %d", len(w), len(g))
}
