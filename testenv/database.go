package testenv

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskerhq/tasker/migrations"
)

const databaseTimeout = 2 * time.Minute

// templateLock is the advisory lock under which a template database is made:
// the tests of several packages start at the same moment. The number has no
// meaning.
const templateLock = 7_215_309_114

// Database gives the test a migrated database of its own and returns its URL.
// The database is dropped when the test ends, whoever is still connected.
func Database(t testing.TB) string {
	t.Helper()
	c, err := process.template.get(newCluster)
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	return c.database(t, "TEMPLATE "+pgx.Identifier{c.template}.Sanitize())
}

// CopyOf gives the test a database of its own that is as another one of its databases,
// to which nobody may be connected.
func CopyOf(t testing.TB, other string) string {
	t.Helper()
	admin, err := postgresURL()
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	from, err := pgx.ParseConfig(other)
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	return (&cluster{admin: admin}).database(t, "TEMPLATE "+pgx.Identifier{from.Database}.Sanitize())
}

// EmptyDatabase gives the test a database of its own without tasker's schema.
func EmptyDatabase(t testing.TB) string {
	t.Helper()
	admin, err := postgresURL()
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	return (&cluster{admin: admin}).database(t, "")
}

// Pool connects to a database, with pgxpool's defaults unless the URL says
// otherwise, and closes the pool when the test ends.
func Pool(t testing.TB, url string) *pgxpool.Pool {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), databaseTimeout)
	defer cancel()
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		t.Fatalf("testenv: connect to %s: %v", url, err)
	}
	t.Cleanup(pool.Close)
	if err := pool.Ping(ctx); err != nil {
		t.Fatalf("testenv: connect to %s: %v", url, err)
	}
	return pool
}

// cluster is a server that has the template database.
type cluster struct {
	admin    string // URL
	template string // name of the database that tests get copies of
}

// newCluster makes sure that the server has a database with the migrations as
// they are now. It is named by their fingerprint, so a server that lives for
// long can't hand out a stale one.
func newCluster() (*cluster, error) {
	admin, err := postgresURL()
	if err != nil {
		return nil, err
	}
	fingerprint := migrations.Fingerprint()
	c := &cluster{admin: admin, template: "tasker_template_" + fingerprint[:min(len(fingerprint), 16)]}
	ctx, cancel := context.WithTimeout(context.Background(), databaseTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, admin)
	if err != nil {
		return nil, fmt.Errorf("connect to the test server: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	// The lock goes with the connection.
	if _, err := conn.Exec(ctx, "SELECT pg_advisory_lock($1)", int64(templateLock)); err != nil {
		return nil, fmt.Errorf("wait for another process that makes the template database: %w", err)
	}
	var complete bool
	err = conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1 AND datistemplate)", c.template).Scan(&complete)
	if err != nil {
		return nil, fmt.Errorf("look for the template database: %w", err)
	}
	if complete {
		return c, nil
	}
	return c, c.makeTemplate(ctx, conn)
}

func (c *cluster) makeTemplate(ctx context.Context, conn *pgx.Conn) error {
	name := pgx.Identifier{c.template}.Sanitize()
	if err := execute(ctx, conn, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)", "CREATE DATABASE "+name); err != nil {
		return fmt.Errorf("make the template database: %w", err)
	}
	pool, err := pgxpool.New(ctx, withDatabase(c.admin, c.template))
	if err != nil {
		return fmt.Errorf("connect to the template database: %w", err)
	}
	err = migrations.Up(ctx, pool)
	pool.Close()
	if err != nil {
		return fmt.Errorf("migrate the template database: %w", err)
	}
	// A database that someone is connected to can't be copied, so from here on
	// nobody may connect. IS_TEMPLATE comes last: it says that all is done.
	err = execute(ctx, conn,
		"ALTER DATABASE "+name+" WITH ALLOW_CONNECTIONS false",
		// Sessions that migrate may still be ending.
		"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '"+c.template+"'",
		"ALTER DATABASE "+name+" WITH IS_TEMPLATE true",
	)
	if err != nil {
		return fmt.Errorf("close the template database: %w", err)
	}
	return nil
}

// database creates one for the test, and drops it after the test.
func (c *cluster) database(t testing.TB, options string) string {
	t.Helper()
	database := databaseName(t.Name())
	name := pgx.Identifier{database}.Sanitize()
	if err := c.asAdmin("CREATE DATABASE " + name + " " + options); err != nil {
		t.Fatalf("testenv: create database: %v", err)
	}
	t.Cleanup(func() {
		// FORCE: what a test leaves running must not make its neighbours fail.
		if err := c.asAdmin("DROP DATABASE IF EXISTS " + name + " WITH (FORCE)"); err != nil {
			t.Errorf("testenv: drop database: %v", err)
		}
	})
	return withDatabase(c.admin, database)
}

func (c *cluster) asAdmin(statements ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), databaseTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, c.admin)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	return execute(ctx, conn, statements...)
}

func execute(ctx context.Context, conn *pgx.Conn, statements ...string) error {
	for _, statement := range statements {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}

// databaseName tells which test a database in pg_stat_activity belongs to.
// Names are cut to Postgres' 63 bytes before the part that makes them unique.
func databaseName(test string) string {
	const most = 40
	readable := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, strings.ToLower(test))
	unique := make([]byte, 6)
	_, _ = rand.Read(unique)
	return "test_" + readable[:min(len(readable), most)] + "_" + hex.EncodeToString(unique)
}

// withDatabase is the URL of another database on the same server.
func withDatabase(admin, database string) string {
	u, err := url.Parse(admin)
	if err != nil {
		return admin // can't be: a connection was made with it
	}
	u.Path = "/" + database
	return u.String()
}
