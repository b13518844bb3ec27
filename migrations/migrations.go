// Package migrations holds the schema: tables, triggers, functions, views as
// SQL files, and runs them together with River's own migrations, which come
// first because ours refer to its table.
//
// A lock on tasker.schema_migrations lets any number of machines migrate at once: the
// first does the work, the others wait and find it done. Each migration runs in a
// transaction of its own with the row that records it, so a failed or killed
// run leaves whole migrations behind and the next run goes on from there.
package migrations

import (
	"cmp"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

// Schema is the schema that everything lives in, River's tables too.
const Schema = "tasker"

// RiverVersion is the version of River's schema that this release is built and
// tested with. It changes only together with the River module.
const RiverVersion = 8

//go:generate go test . -run TestTheSchemaDumpIsCurrent -update

//go:embed sql/*.sql
var files embed.FS

//go:embed secure.sql
var secure string

// Errors that Check returns; both come wrapped with what to do.
var (
	ErrNotMigrated = errors.New("database is not migrated")
	ErrNewer       = errors.New("database is newer than this binary")
)

// Migration is one numbered step of our own schema.
type Migration struct {
	Version  int
	Name     string
	Up, Down string
}

// All returns our migrations in order.
func All() []Migration {
	names, err := fs.Glob(files, "sql/*.up.sql")
	if err != nil {
		panic(err) // the pattern is a constant
	}
	var all []Migration
	for _, name := range names {
		base := strings.TrimSuffix(strings.TrimPrefix(name, "sql/"), ".up.sql")
		number, title, _ := strings.Cut(base, "_")
		version, err := strconv.Atoi(number)
		if err != nil {
			panic(fmt.Sprintf("migration file %s does not start with a number", name))
		}
		all = append(all, Migration{Version: version, Name: title, Up: read(name), Down: read("sql/" + base + ".down.sql")})
	}
	return all
}

func read(name string) string {
	text, err := files.ReadFile(name)
	if err != nil {
		panic(fmt.Sprintf("migration file %s: %v", name, err))
	}
	return string(text)
}

// Fingerprint identifies the whole schema, River's version included: two
// binaries with the same fingerprint make the same database.
func Fingerprint() string {
	h := sha256.New()
	fmt.Fprintf(h, "river %d\n", RiverVersion)
	fmt.Fprintln(h, secure)
	for _, m := range All() {
		fmt.Fprintf(h, "%d %s\n%s\n", m.Version, m.Name, m.Up)
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// Status is what a database has of the schema.
type Status struct {
	River        int // version of River's schema; 0: none
	RiverTarget  int
	Applied      []int
	Pending      []int
	UnknownNewer []int // applied by a newer release
}

// Current reports whether nothing is left to do.
func (s *Status) Current() bool {
	return len(s.Pending) == 0 && len(s.UnknownNewer) == 0 && s.River == s.RiverTarget
}

// Up brings the database to this release's schema.
func Up(ctx context.Context, pool *pgxpool.Pool) error {
	return locked(ctx, pool, true, func(conn, _ *pgx.Conn) error {
		status, err := statusOf(ctx, conn)
		if err != nil {
			return err
		}
		if err := status.refuseNewer(); err != nil {
			return err
		}
		if err := migrateRiver(ctx, pool, rivermigrate.DirectionUp, RiverVersion); err != nil {
			return err
		}
		for _, m := range All() {
			if slices.Contains(status.Applied, m.Version) {
				continue
			}
			if err := apply(ctx, conn, m.Up, fmt.Sprintf(
				"INSERT INTO tasker.schema_migrations (version, name) VALUES (%d, '%s')", m.Version, m.Name)); err != nil {
				return fmt.Errorf("apply migration %d (%s): %w", m.Version, m.Name, err)
			}
		}
		return nil
	})
}

// Down takes back the last n of our migrations. With all it removes
// everything: River's tables, the schema, and so every task.
func Down(ctx context.Context, pool *pgxpool.Pool, n int, all bool) ([]Migration, error) {
	var undone []Migration
	err := locked(ctx, pool, false, func(conn, holder *pgx.Conn) error {
		status, err := statusOf(ctx, conn)
		if err != nil {
			return err
		}
		if err := status.refuseNewer(); err != nil {
			return err
		}
		migrations := All()
		slices.Reverse(migrations)
		for _, m := range migrations {
			if !slices.Contains(status.Applied, m.Version) || (!all && len(undone) == n) {
				continue
			}
			if err := apply(ctx, conn, m.Down, fmt.Sprintf(
				"DELETE FROM tasker.schema_migrations WHERE version = %d", m.Version)); err != nil {
				return fmt.Errorf("take back migration %d (%s): %w", m.Version, m.Name, err)
			}
			undone = append(undone, m)
		}
		if !all {
			return nil
		}
		if status.River > 0 {
			if err := migrateRiver(ctx, pool, rivermigrate.DirectionDown, -1); err != nil {
				return err
			}
		}
		if _, err := holder.Exec(ctx, `DROP SCHEMA IF EXISTS tasker CASCADE`); err != nil { // which waits for the lock that holder has
			return fmt.Errorf("drop schema %s: %w", Schema, err)
		}
		return nil
	})
	return undone, err
}

// ReadStatus tells what the database has.
func ReadStatus(ctx context.Context, pool *pgxpool.Pool) (*Status, error) {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to the database: %w", err)
	}
	defer conn.Release()
	return statusOf(ctx, conn.Conn())
}

// Check returns nil when the database fits this binary, else ErrNotMigrated or
// ErrNewer, wrapped with what to do.
func Check(ctx context.Context, pool *pgxpool.Pool) error {
	status, err := ReadStatus(ctx, pool)
	if err != nil {
		return err
	}
	if err := status.refuseNewer(); err != nil {
		return err
	}
	if !status.Current() {
		database := pool.Config().ConnConfig.Database
		if len(status.Applied) == 0 {
			return fmt.Errorf("%w: %q has no schema %s; run: tasker migrate up", ErrNotMigrated, database, Schema)
		}
		return fmt.Errorf("%w: %q lacks migrations %v; run: tasker migrate up", ErrNotMigrated, database, status.Pending)
	}
	return nil
}

// DryRun returns the SQL that Up would run, in its order.
func DryRun(ctx context.Context, pool *pgxpool.Pool) (string, error) {
	status, err := ReadStatus(ctx, pool)
	if err != nil {
		return "", err
	}
	if err := status.refuseNewer(); err != nil {
		return "", err
	}
	var out strings.Builder
	if status.River == 0 && len(status.Applied) == 0 {
		fmt.Fprintf(&out, "%s;\n%s;\n\n", createSchema, createRecord)
	}
	migrator, err := riverMigrator(pool)
	if err != nil {
		return "", err
	}
	for _, v := range migrator.AllVersions() {
		if v.Version > status.River && v.Version <= RiverVersion {
			sql := strings.ReplaceAll(v.SQLUp, "/* TEMPLATE: schema */", Schema+".")
			fmt.Fprintf(&out, "-- River, version %d\nBEGIN;\n%s\nCOMMIT;\n\n", v.Version, strings.TrimSpace(sql))
		}
	}
	for _, m := range All() {
		if slices.Contains(status.Pending, m.Version) {
			fmt.Fprintf(&out, "-- tasker, migration %d (%s)\nBEGIN;\n%s\n\n%s\nCOMMIT;\n\n", m.Version, m.Name, strings.TrimSpace(m.Up), strings.TrimSpace(secure))
		}
	}
	return out.String(), nil
}

const (
	createSchema = `CREATE SCHEMA tasker`
	createRecord = `CREATE TABLE tasker.schema_migrations (
    version    int PRIMARY KEY,
    name       text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)`
)

func (s *Status) refuseNewer() error {
	if len(s.UnknownNewer) > 0 {
		return fmt.Errorf("%w: it has migrations %v; install the release that made them", ErrNewer, s.UnknownNewer)
	}
	if s.River > s.RiverTarget {
		return fmt.Errorf("%w: River's schema is at version %d, this binary knows %d; install the release that made it", ErrNewer, s.River, s.RiverTarget)
	}
	return nil
}

func statusOf(ctx context.Context, conn *pgx.Conn) (*Status, error) {
	status := &Status{RiverTarget: RiverVersion}
	var own, river bool
	if err := conn.QueryRow(ctx, `SELECT to_regclass('tasker.schema_migrations') IS NOT NULL,
		to_regclass('tasker.river_migration') IS NOT NULL`).Scan(&own, &river); err != nil {
		return nil, fmt.Errorf("read migration status: %w", err)
	}
	if river {
		if err := conn.QueryRow(ctx, `SELECT coalesce(max(version), 0) FROM tasker.river_migration WHERE line = 'main'`).Scan(&status.River); err != nil {
			return nil, fmt.Errorf("read River's migration status: %w", err)
		}
	}
	if own {
		rows, err := conn.Query(ctx, `SELECT version FROM tasker.schema_migrations ORDER BY version`)
		if err != nil {
			return nil, fmt.Errorf("read migration status: %w", err)
		}
		if status.Applied, err = pgx.CollectRows(rows, pgx.RowTo[int]); err != nil {
			return nil, fmt.Errorf("read migration status: %w", err)
		}
	}
	known := All()
	for _, m := range known {
		if !slices.Contains(status.Applied, m.Version) {
			status.Pending = append(status.Pending, m.Version)
		}
	}
	for _, v := range status.Applied {
		if !slices.ContainsFunc(known, func(m Migration) bool { return m.Version == v }) {
			status.UnknownNewer = append(status.UnknownNewer, v)
		}
	}
	return status, nil
}

// locked runs do while a second connection, holder, has the lock that migrations take
// turns by: on a table, as any login may hold an advisory lock. It makes the schema
// first, if asked to. Without a schema there is nothing to take turns for.
func locked(ctx context.Context, pool *pgxpool.Pool, create bool, do func(conn, holder *pgx.Conn) error) error {
	// Not from the pool: River's migrations need its connections meanwhile, and
	// the lock must end with its connection whatever happens.
	var conns [2]*pgx.Conn
	for i := range conns {
		conn, err := pgx.ConnectConfig(ctx, pool.Config().ConnConfig.Copy())
		if err != nil {
			return fmt.Errorf("connect to the database: %w", err)
		}
		defer conn.Close(context.WithoutCancel(ctx))
		conns[i] = conn
	}
	conn, holder := conns[0], conns[1]
	if create {
		if err := makeSchema(ctx, conn); err != nil {
			return fmt.Errorf("create schema %s: %w", Schema, err)
		}
	}
	if _, err := holder.Exec(ctx, `BEGIN`); err != nil {
		return fmt.Errorf("wait for other migrations: %w", err)
	}
	_, err := holder.Exec(ctx, `LOCK TABLE tasker.schema_migrations IN SHARE UPDATE EXCLUSIVE MODE`)
	var pg *pgconn.PgError
	if errors.As(err, &pg) && (pg.Code == "42P01" || pg.Code == "3F000") { // no such table, no such schema
		return do(conn, conn)
	}
	if err != nil {
		return fmt.Errorf("wait for other migrations: %w", err)
	}
	if err := do(conn, holder); err != nil {
		return err
	}
	if _, err := holder.Exec(ctx, `COMMIT`); err != nil {
		return fmt.Errorf("end the migrations: %w", err)
	}
	return nil
}

// makeSchema makes the schema and the table that migrations are recorded in. Where both
// are there it needs no right to make them.
func makeSchema(ctx context.Context, conn *pgx.Conn) error {
	for n := 1; ; n++ {
		var schema, table bool
		if err := conn.QueryRow(ctx, `SELECT to_regnamespace('tasker') IS NOT NULL, to_regclass('tasker.schema_migrations') IS NOT NULL`).Scan(&schema, &table); err != nil {
			return err
		}
		var statements []string
		if !schema {
			statements = append(statements, createSchema)
		}
		if !table {
			statements = append(statements, createRecord)
		}
		_, err := conn.PgConn().Exec(ctx, strings.Join(statements, ";\n")).ReadAll()
		var pg *pgconn.PgError
		// Another one made it at the same time.
		if n < 3 && errors.As(err, &pg) && (pg.Code == "23505" || pg.Code == "42P06" || pg.Code == "42P07") {
			continue
		}
		return err
	}
}

// apply runs one migration and the statement that records it in a transaction.
// The simple protocol takes both as they are written.
//
// It ends with what holds for every function and, where there are roles, for their
// rights: a migration replaces functions as a whole, and these must not be without,
// even if the next one fails.
//
// First it locks the tables that it names, in one order, and it is the migration that gives way and begins anew, never the
// application: whoever waits behind it waits for less than the time after which
// Postgres looks for deadlocks, and ends one of those in it.
func apply(ctx context.Context, conn *pgx.Conn, sql, record string) error {
	rights := ""
	if has, err := hasRoles(ctx, conn); err != nil {
		return err
	} else if has {
		rights = roles
	}
	statements := "BEGIN;\nSET LOCAL search_path = pg_catalog, pg_temp;\n" + lockTables(sql) + sql + "\n;" + record + ";\n" + secure + "\n;" + rights + "\n;COMMIT"
	for begun := time.Now(); ; {
		_, err := conn.PgConn().Exec(ctx, statements).ReadAll()
		if err == nil {
			return nil
		}
		_, rollbackErr := conn.PgConn().Exec(context.WithoutCancel(ctx), "ROLLBACK").ReadAll()
		var pg *pgconn.PgError
		if !errors.As(err, &pg) || pg.Code != "55P03" && pg.Code != "40P01" { // a lock was not available, or there was a deadlock
			return errors.Join(err, rollbackErr)
		}
		if time.Since(begun) > lockPatience {
			return fmt.Errorf("the tables were in use for %s by transactions that stay open (they are in pg_stat_activity): end them, or migrate at a quieter time: %w", lockPatience, err)
		}
		select {
		case <-time.After(100*time.Millisecond + rand.N(400*time.Millisecond)): // those who queued behind it have their turn
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		}
	}
}

const lockPatience = time.Minute

// lockOrder is the order in which the application locks what it works with most, so
// that the two seldom stand in each other's way; other tables come after these.
var lockOrder = []string{
	"tasks", "task_templates", "template_steps", "steps", "dispatches", "gates", "gate_slots", "gate_waiters", "events", "river_job",
}

var (
	functionBody = regexp.MustCompile(`(?s)\bAS\s+(\$\w*\$).*?\$\w*\$`)
	inSchema     = regexp.MustCompile(`\btasker\.(\w+)`)
)

// lockTables is a statement that locks the tables that a migration names, other than
// in functions that it makes.
func lockTables(sql string) string {
	var named []string
	for _, name := range inSchema.FindAllStringSubmatch(functionBody.ReplaceAllString(sql, ""), -1) {
		named = append(named, name[1])
	}
	rank := func(name string) int {
		if i := slices.Index(lockOrder, name); i >= 0 {
			return i
		}
		return len(lockOrder)
	}
	slices.SortFunc(named, func(a, b string) int { return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a, b)) })
	named = slices.Compact(named)
	return fmt.Sprintf(`
DO $lock$
DECLARE
    name     text;
    patience int := (SELECT setting::int * 3 / 4 FROM pg_settings s WHERE s.name = 'deadlock_timeout');
    until    timestamptz := clock_timestamp() + make_interval(secs => patience / 1000.0);
BEGIN
    FOREACH name IN ARRAY '{%s}'::text[] LOOP
        -- Functions are named, too, and what the migration is about to make.
        IF EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = to_regnamespace('tasker') AND c.relname = name AND c.relkind IN ('r', 'p')) THEN
            PERFORM set_config('lock_timeout', greatest(1, (extract(epoch FROM until - clock_timestamp()) * 1000)::int)::text, true);
            EXECUTE format('LOCK TABLE tasker.%%I IN ACCESS EXCLUSIVE MODE', name);
        END IF;
    END LOOP;
    PERFORM set_config('lock_timeout', greatest(1, patience)::text, true);
END $lock$;
`, strings.Join(named, ","))
}

func riverMigrator(pool *pgxpool.Pool) (*rivermigrate.Migrator[pgx.Tx], error) {
	migrator, err := rivermigrate.New(riverpgxv5.New(pool), &rivermigrate.Config{
		Schema: Schema,
		Logger: slog.New(slog.DiscardHandler), // it narrates every statement; the command says what was done
	})
	if err != nil {
		return nil, fmt.Errorf("set up River's migrations: %w", err)
	}
	return migrator, nil
}

func migrateRiver(ctx context.Context, pool *pgxpool.Pool, direction rivermigrate.Direction, target int) error {
	migrator, err := riverMigrator(pool)
	if err != nil {
		return err
	}
	existing, err := migrator.ExistingVersions(ctx)
	if err != nil {
		return fmt.Errorf("read River's migration status: %w", err)
	}
	if direction == rivermigrate.DirectionUp && len(existing) > 0 && existing[len(existing)-1].Version >= target {
		return nil
	}
	if _, err := migrator.Migrate(ctx, direction, &rivermigrate.MigrateOpts{TargetVersion: target}); err != nil {
		return fmt.Errorf("run River's migrations: %w", err)
	}
	return nil
}
