// Package store is the only Go that speaks SQL.
//
// Atomicity belongs to the SQL functions of package migrations; this package
// calls them, groups many callers into one call, and turns their refusals into
// the errors below. Losing is normal here: ErrStale and ErrWorkerDead are
// answers, not faults.
//
// What happens when Postgres is away: reads return the error. Grouped writes
// try again until the connection is back or their context ends, because the
// loop that waits for one can do nothing else. A write whose answer was lost
// may have been committed; sent again it is refused as stale, and the loop
// reads its task anew.
package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskerhq/tasker/safetext"
)

// Store reads and writes tasks, steps, templates and workers.
type Store struct {
	pool *pgxpool.Pool

	// Groups is how writers and claimers that are made from here group their
	// calls. The zero value of a field means its default.
	Groups Groups
}

// New returns a store over the pool. The caller closes the pool.
func New(pool *pgxpool.Pool) *Store { return &Store{pool: pool} }

// Errors that callers act on.
var (
	// ErrStale says that a loop's write was refused: it has lost its task, or a
	// step is not in the state that the loop saw. Read the task again.
	ErrStale = errors.New("the task has moved on")
	// ErrWorkerDead says that this worker was declared dead. Its tasks belong to
	// others: stop every loop and register again.
	ErrWorkerDead = errors.New("this worker has been declared dead")
	// ErrBusy says that somebody's open transaction holds a row that the call
	// needs. It is an ErrStale too: look at the task again, a little later.
	ErrBusy = errors.New("the task is held by another transaction")
	// ErrGatesChanged says that a claim was made without knowing the gates as they
	// are. It is an ErrStale too: read the gates, then the task again.
	ErrGatesChanged = errors.New("the gates have changed")
	// ErrNotFound says that what was asked for does not exist.
	ErrNotFound = errors.New("not found")
)

// SQLSTATEs that our functions raise; migrations/sql documents them.
const (
	codeUnknownTemplate = "TK001"
	codeTemplateChanged = "TK002"
	codeBadContext      = "TK003"
	codeWorkerDead      = "TK004"
	codeStale           = "TK005"
	codeLocked          = "55P03" // lock_not_available
	codeWrongState      = "TK008"
	codeGatesChanged    = "TK009"
	codeNoData          = "P0002" // no_data_found
)

// staleError is an ErrStale that may name the tasks whose loops it is about.
type staleError struct {
	message, tasks string
	also           error // what it is besides; nil: nothing
}

func (e *staleError) Error() string { return ErrStale.Error() + ": " + e.message }
func (e *staleError) Is(target error) bool {
	return target == ErrStale || e.also != nil && target == e.also
}

// RefusedError is bad input that the database refused with a message for
// people: an unknown template, a context that is no object, a changed template.
type RefusedError struct {
	Message string
	Hint    string
}

func (e *RefusedError) Error() string {
	if e.Hint == "" {
		return e.Message
	}
	return e.Message + " (" + e.Hint + ")"
}

// translate turns a driver's error into one of this package's, where there is
// one for it.
func translate(err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		if errors.Is(err, pgx.ErrNoRows) {
			return ErrNotFound
		}
		return err
	}
	switch pg.Code {
	case codeStale:
		return &staleError{message: pg.Message, tasks: pg.Detail}
	case codeLocked:
		return &staleError{message: pg.Message, tasks: pg.Detail, also: ErrBusy}
	case codeGatesChanged:
		return &staleError{message: pg.Message, tasks: pg.Detail, also: ErrGatesChanged}
	case codeWorkerDead:
		return fmt.Errorf("%w: %s", ErrWorkerDead, pg.Message)
	case codeNoData:
		return fmt.Errorf("%w: %s", ErrNotFound, pg.Message)
	case codeUnknownTemplate, codeTemplateChanged, codeBadContext, codeWrongState:
	default:
		// Class 22 is "data exception" (a value that its type can't hold), 23 a
		// violated constraint, 54 a limit of the server (JSON nested too deeply).
		if class := pg.Code[:2]; class != "22" && class != "23" && class != "54" {
			return err
		}
	}
	message := pg.Message
	if pg.Detail != "" {
		message += ": " + pg.Detail
	}
	return &RefusedError{Message: message, Hint: pg.Hint}
}

// temporary reports whether the n-th try (from 1) of a call should be followed
// by another without any change of its input: the connection broke, the server
// is starting, stopping or out of something, or two transactions got in each
// other's way. An error of a kind that nobody foresaw gets a few tries.
func temporary(err error, n int) bool {
	var (
		pg      *pgconn.PgError
		network net.Error
		connect *pgconn.ConnectError
		scan    pgx.ScanArgError
		refused *RefusedError
		early   *NotDueError
	)
	switch {
	case errors.As(err, &pg):
		switch pg.Code[:2] {
		case "08", "40", "53", "57", "58":
			return true
		}
		return false
	case errors.Is(err, context.Canceled), errors.Is(err, ErrWorkerDead), errors.Is(err, ErrStale), errors.Is(err, ErrNotFound), errors.Is(err, ErrHeld), errors.As(err, &scan), errors.As(err, &refused), errors.As(err, &early):
		return false
	case errors.As(err, &connect), errors.As(err, &network), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return true
	}
	return n < 10
}

// patience is how long to wait before call n (from 1) of something temporary
// is tried again. It is no setting: a database that is back is noticed within
// its 2 s, and one that is away is not pressed harder than this.
func patience(n int) time.Duration {
	return min(50*time.Millisecond<<min(n, 10), 2*time.Second)
}

// Patiently makes a call again and again while its failure is temporary, until
// ctx ends.
func Patiently[T any](ctx context.Context, call func() (T, error)) (T, error) {
	for n := 1; ; n++ {
		value, err := call()
		if err == nil || !temporary(err, n) || ctx.Err() != nil {
			return value, err
		}
		select {
		case <-time.After(patience(n)):
		case <-ctx.Done():
			return value, errors.Join(context.Cause(ctx), err)
		}
	}
}

// ConnectTimeout is how long Open waits for the server's first answer, if
// nothing else is said.
const ConnectTimeout = 10 * time.Second

// Server says how the database is reached.
type Server struct {
	URL     string
	Timeout time.Duration // for its first answer; 0: ConnectTimeout

	// Pooled: what answers is a pooler such as PgBouncer that may give every
	// transaction another session. Then nothing is kept in a session: no
	// prepared statements, no settings, no LISTEN.
	Pooled bool
}

// Open connects to the database and checks that it answers. name is what the
// server shows as application_name.
func Open(ctx context.Context, url, name string, connections int32) (*pgxpool.Pool, error) {
	return Server{URL: url}.Open(ctx, name, connections)
}

// Open is the function Open, with all that is to be said of the server.
func (s Server) Open(ctx context.Context, name string, connections int32) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(withoutForeign(s.URL))
	if err != nil {
		if safetext.MaskAddress(s.URL) == safetext.Filtered { // the parser's message could repeat the password
			err = errors.New("not a URL; characters such as / # ? @ of a password are written as %2F %23 %3F %40")
		}
		return nil, fmt.Errorf("database URL: %w; it looks like postgres://USER:PASSWORD@HOST:5432/DATABASE (--database-url, TASKER_DATABASE_URL or DATABASE_URL)", err)
	}
	if !strings.Contains(s.URL, "pool_max_conns") {
		config.MaxConns = connections
	}
	config.ConnConfig.DialFunc = dial
	if config.ConnConfig.RuntimeParams["application_name"] == "" {
		config.ConnConfig.RuntimeParams["application_name"] = name
	}
	if s.Pooled {
		// What a statement takes and returns is remembered here, not in the session.
		config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
		config.ConnConfig.StatementCacheCapacity = 0
	} else {
		for _, s := range sessionSettings {
			config.ConnConfig.RuntimeParams[s.name] = s.value
		}
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("set up the connection pool: %w", err)
	}
	ping, cancel := context.WithTimeout(ctx, cmp.Or(s.Timeout, ConnectTimeout))
	defer cancel()
	if err := answers(ping, pool); err != nil {
		pool.Close()
		c := config.ConnConfig
		return nil, fmt.Errorf("no connection to database %q at %s:%d: %w; check --database-url (TASKER_DATABASE_URL, DATABASE_URL) and that the server runs",
			c.Database, c.Host, c.Port, err)
	}
	return pool, nil
}

// foreign are parameters of a database URL that others understand, and Postgres does not:
// ActiveRecord's, and libpq's that are about the connection itself.
var foreign = []string{
	"pool", "checkout_timeout", "idle_timeout", "reaping_frequency", "max_connections", "min_connections", "max_age", "keepalive", "prepared_statements", "statement_limit",
	"advisory_locks", "encoding", "min_messages", "schema_search_path", "schema_order", "insert_returning", "adapter", "timeout", "retries", "connection_retries", "retry_deadline",
	"database_tasks", "migrations_paths", "replica", "query_cache",
	"keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout", "gssencmode", "gssdelegation", "sslcompression", "requirepeer", "fallback_application_name",
}

// withoutForeign is the URL as pgx understands it: one that is written for Rails, or libpq,
// may hold more.
func withoutForeign(address string) string {
	if rest, ok := strings.CutPrefix(address, "postgis:"); ok {
		address = "postgres:" + rest
	}
	location, query, found := strings.Cut(address, "?")
	if !found || !strings.Contains(location, "://") {
		return address
	}
	parameters := slices.DeleteFunc(strings.Split(query, "&"), func(p string) bool {
		name, _, _ := strings.Cut(p, "=")
		return slices.Contains(foreign, name)
	})
	return strings.TrimSuffix(location+"?"+strings.Join(parameters, "&"), "?")
}

// sessionSettings are what a session must have, however the role and the database
// are configured. A pooler does not pass them on: there the role must have those
// that matter.
var sessionSettings = []struct {
	name, value string
	matters     bool
}{
	// The fence looks at the worker's state after it has the lock; a snapshot
	// from before the lock, as in the stricter levels, would show the old one.
	{"default_transaction_isolation", "read committed", true},
	// A role that may create functions or operators in another schema could plant
	// one that fits a statement better than Postgres' own.
	{"search_path", "pg_catalog, pg_temp", true},
	{"standard_conforming_strings", "on", true},
	{"client_encoding", "UTF8", true},
	{"DateStyle", "ISO, MDY", false},
	{"IntervalStyle", "postgres", false},
}

// answers checks that the database answers, and with the session settings that the
// statements of this package rely on.
func answers(ctx context.Context, pool *pgxpool.Pool) error {
	names := make([]string, len(sessionSettings))
	for i, s := range sessionSettings {
		names[i] = s.name
	}
	var (
		values   []string
		encoding string
	)
	err := pool.QueryRow(ctx, `SELECT ARRAY(SELECT pg_catalog.current_setting(n) FROM pg_catalog.unnest($1::text[]) n), pg_catalog.current_setting('server_encoding')`, names).
		Scan(&values, &encoding)
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg) && strings.Contains(pg.Message, "unsupported startup parameter"):
		return fmt.Errorf("%w: this is a connection pooler: set database.mode to poll_only (TASKER_DATABASE_MODE=poll_only), or name the server itself", err)
	case err != nil:
		return err
	}
	if encoding != "UTF8" {
		return fmt.Errorf("its encoding is %s, and has to be UTF8, or text is lost: CREATE DATABASE … TEMPLATE template0 ENCODING 'UTF8'", encoding)
	}
	for i, s := range sessionSettings {
		if !s.matters || values[i] == s.value {
			continue
		}
		config, value := pool.Config().ConnConfig, "'"+s.value+"'"
		if s.name == "search_path" {
			value = s.value // a list of names
		}
		return fmt.Errorf("its %s is %q, and has to be %s: ALTER ROLE %s IN DATABASE %s SET %s = %s", s.name, values[i], s.value,
			pgx.Identifier{config.User}.Sanitize(), pgx.Identifier{config.Database}.Sanitize(), s.name, value)
	}
	return nil
}
