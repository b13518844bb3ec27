package devstack_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/taskerhq/tasker/devstack"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("DEVSTACK_TEST_OWNER"); dir != "" {
		ownServers(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

// workDir is a folder that Postgres can use whoever runs the tests:
// t.TempDir() is closed to other users.
func workDir(t *testing.T) string {
	t.Helper()
	dir, cleanup, err := devstack.WorkDir("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cleanup)
	return dir
}

func within(t *testing.T, limit time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return ctx
}

func startPostgres(t *testing.T, options devstack.PostgresOptions) *devstack.Postgres {
	t.Helper()
	begin := time.Now()
	postgres, err := devstack.StartPostgres(within(t, time.Minute), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("Postgres took %v to start", time.Since(begin).Round(time.Millisecond))
	t.Cleanup(func() {
		if err := postgres.Stop(within(t, time.Minute)); err != nil {
			t.Error(err)
		}
	})
	return postgres
}

func startRedis(t *testing.T, options devstack.RedisOptions) *devstack.Redis {
	t.Helper()
	begin := time.Now()
	server, err := devstack.StartRedis(within(t, time.Minute), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("Redis took %v to start", time.Since(begin).Round(time.Millisecond))
	t.Cleanup(func() {
		if err := server.Stop(within(t, time.Minute)); err != nil {
			t.Error(err)
		}
	})
	return server
}

// query runs one statement on a connection of its own; a statement without a
// result gives "".
func query(t *testing.T, url, sql string) string {
	t.Helper()
	ctx := within(t, 10*time.Second)
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, sql)
	if err != nil {
		t.Fatal(err)
	}
	values, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return strings.Join(values, "\n")
}

func redisClient(t *testing.T, server *devstack.Redis, db int) *redis.Client {
	t.Helper()
	options, err := redis.ParseURL(server.URL(db))
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(options)
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func TestPostgresKeepsItsDataOverStopAndStart(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(workDir(t), "postgres")
	var log bytes.Buffer
	first := startPostgres(t, devstack.PostgresOptions{Dir: dir, MaxConnections: 30, Log: &log})
	ctx := within(t, time.Minute)
	for range 2 { // the second time it exists
		if err := first.CreateDatabase(ctx, "shop"); err != nil {
			t.Fatal(err)
		}
	}
	query(t, first.URL("shop"), "CREATE TABLE orders AS SELECT 'kept' AS note")
	if got := query(t, first.URL("shop"), "SHOW max_connections"); got != "30" {
		t.Errorf("max_connections = %s, want 30", got)
	}
	if got := query(t, first.URL("shop"), "SHOW synchronous_commit"); got != "on" {
		t.Errorf("synchronous_commit = %s, want on", got)
	}
	if got := query(t, first.URL("shop"), "SHOW fsync"); got != "off" {
		t.Errorf("fsync = %s, want off", got)
	}
	if !strings.Contains(log.String(), "creating a Postgres cluster") {
		t.Errorf("the first start doesn't say that it creates a cluster: %q", log.String())
	}
	if err := first.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if first.PID() != 0 {
		t.Errorf("PID after Stop = %d, want 0", first.PID())
	}
	if err := first.Stop(ctx); err != nil {
		t.Errorf("Stop of a stopped server: %v", err)
	}

	second := startPostgres(t, devstack.PostgresOptions{Dir: dir, Fsync: true})
	if got := query(t, second.URL("shop"), "SELECT note FROM orders"); got != "kept" {
		t.Errorf("note = %q, want kept", got)
	}
	if got := query(t, second.URL("shop"), "SHOW fsync"); got != "on" {
		t.Errorf("fsync = %s, want on", got)
	}
}

func TestPostgresListensOnLoopbackAlone(t *testing.T) {
	t.Parallel()
	postgres := startPostgres(t, devstack.PostgresOptions{Dir: workDir(t)})
	if got := query(t, postgres.URL("postgres"), "SHOW listen_addresses"); got != "127.0.0.1" {
		t.Errorf("listen_addresses = %q, want 127.0.0.1", got)
	}
	if got := query(t, postgres.URL("postgres"), "SHOW unix_socket_directories"); got != "" {
		t.Errorf("unix_socket_directories = %q, want none", got)
	}
}

func TestPostgresRestartsOnItsPortHoweverItEnded(t *testing.T) {
	t.Parallel()
	postgres := startPostgres(t, devstack.PostgresOptions{Dir: workDir(t)})
	address := postgres.URL("postgres")
	query(t, address, "CREATE TABLE notes AS SELECT 'kept' AS note")

	for _, end := range []struct {
		name string
		call func(context.Context) error
	}{
		{"running", func(context.Context) error { return nil }},
		{"stopped", postgres.Stop},
		{"stopped immediately", postgres.StopImmediate},
		{"killed", func(context.Context) error { return postgres.Kill() }},
	} {
		// A session that is doing something when the server ends.
		busy, err := pgx.Connect(within(t, time.Minute), address)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, _ = busy.Exec(context.Background(), "SELECT pg_sleep(60)")
			_ = busy.Close(context.Background())
		}()
		before, done := postgres.PID(), postgres.Done()
		if err := end.call(within(t, time.Minute)); err != nil {
			t.Fatalf("%s: %v", end.name, err)
		}
		begin := time.Now()
		if err := postgres.Restart(within(t, time.Minute)); err != nil {
			t.Fatalf("restart a server that was %s: %v", end.name, err)
		}
		t.Logf("restart of a server that was %s took %v", end.name, time.Since(begin).Round(time.Millisecond))
		select {
		case <-done:
		default:
			t.Errorf("%s: Done of the former server isn't closed", end.name)
		}
		if postgres.PID() == before {
			t.Errorf("%s: still process %d", end.name, before)
		}
		if got := query(t, address, "SELECT note FROM notes"); got != "kept" {
			t.Errorf("%s: note = %q, want kept", end.name, got)
		}
	}
}

func TestRedisRestartsOnItsPort(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		appendOnly bool
		kept       string
	}{{false, ""}, {true, "kept"}} {
		t.Run(fmt.Sprintf("append only %v", c.appendOnly), func(t *testing.T) {
			t.Parallel()
			server := startRedis(t, devstack.RedisOptions{Dir: workDir(t), Databases: 1024, AppendOnly: c.appendOnly})
			client := redisClient(t, server, 1023)
			ctx := within(t, time.Minute)
			if err := client.Set(ctx, "note", "kept", 0).Err(); err != nil {
				t.Fatal(err)
			}
			if err := server.Restart(ctx); err != nil {
				t.Fatal(err)
			}
			if got := client.Get(ctx, "note").Val(); got != c.kept {
				t.Errorf("after a restart note = %q, want %q", got, c.kept)
			}
			if err := server.Kill(); err != nil {
				t.Fatal(err)
			}
			if server.PID() != 0 {
				t.Errorf("PID after Kill = %d, want 0", server.PID())
			}
			if err := server.Restart(ctx); err != nil {
				t.Fatal(err)
			}
			if err := client.Ping(ctx).Err(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestOccupiedPortIsNamed(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	port := listener.Addr().(*net.TCPAddr).Port
	ctx := within(t, time.Minute)

	_, postgresErr := devstack.StartPostgres(ctx, devstack.PostgresOptions{Dir: workDir(t), Port: port})
	_, redisErr := devstack.StartRedis(ctx, devstack.RedisOptions{Dir: workDir(t), Port: port})
	for _, err := range []error{postgresErr, redisErr} {
		if err == nil || !strings.Contains(err.Error(), listener.Addr().String()) || !strings.Contains(err.Error(), "choose another port") {
			t.Errorf("error = %v, want one that names %s and says what to do", err, listener.Addr())
		}
	}
}

func TestFailedStartShowsTheLog(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	_, err := devstack.StartPostgres(within(t, time.Minute), devstack.PostgresOptions{Dir: workDir(t), MaxConnections: 1})
	if err == nil || !strings.Contains(err.Error(), "max_connections") {
		t.Errorf("Postgres: error = %v, want what its log says about max_connections", err)
	}
	_, err = devstack.StartRedis(within(t, time.Minute), devstack.RedisOptions{Dir: workDir(t), Databases: -1})
	if err == nil || !strings.Contains(err.Error(), `databases "-1"`) {
		t.Errorf("Redis: error = %v, want what its log says about databases", err)
	}
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("took %v: the end of the child isn't noticed", took)
	}
}

func TestFolderOfAnotherVersionIsRefused(t *testing.T) {
	t.Parallel()
	dir := workDir(t)
	if err := os.Mkdir(filepath.Join(dir, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "data", "PG_VERSION"), []byte("9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := devstack.StartPostgres(within(t, time.Minute), devstack.PostgresOptions{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), "was written by Postgres 9") {
		t.Errorf("error = %v, want one that names the version", err)
	}
}

func TestURLsCanBeParsed(t *testing.T) {
	t.Parallel()
	postgres := startPostgres(t, devstack.PostgresOptions{Dir: workDir(t)})
	for _, name := range []string{"shop", "two words", "ü/?"} {
		if err := postgres.CreateDatabase(within(t, time.Minute), name); err != nil {
			t.Fatal(err)
		}
		if got := query(t, postgres.URL(name), "SELECT current_database()::text"); got != name {
			t.Errorf("%s leads to database %q, want %q", postgres.URL(name), got, name)
		}
	}
	if u, err := url.Parse(postgres.URL("shop")); err != nil || u.Port() != fmt.Sprint(postgres.Port()) {
		t.Errorf("port of %s isn't %d (%v)", postgres.URL("shop"), postgres.Port(), err)
	}
}

// Another account of the machine reaches the port, and gets no further without the password.
func TestServersAskForTheirPasswords(t *testing.T) {
	t.Parallel()
	dir := workDir(t)
	postgres := startPostgres(t, devstack.PostgresOptions{Dir: filepath.Join(dir, "postgres")})
	server := startRedis(t, devstack.RedisOptions{Dir: filepath.Join(dir, "redis")})
	passwords := map[string]string{}
	for name, address := range map[string]string{"postgres": postgres.URL("postgres"), "redis": server.URL(0)} {
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		password, _ := u.User.Password()
		if len(password) < 20 {
			t.Errorf("the password of %s is %q", name, password)
		}
		passwords[name] = password
		kept := filepath.Join(dir, name, "password")
		text, err := os.ReadFile(kept)
		if err != nil || strings.TrimSpace(string(text)) != password {
			t.Errorf("%s keeps %q, not %q (%v)", kept, text, password, err)
		}
		for _, file := range []string{"password", "redis.conf", "postgres.log", "redis.log"} {
			info, err := os.Stat(filepath.Join(dir, name, file))
			if err == nil && info.Mode().Perm() != 0o600 {
				t.Errorf("%s of %s has mode %s", file, name, info.Mode())
			}
		}
	}
	if passwords["postgres"] == passwords["redis"] {
		t.Error("both servers have the same password")
	}
	if got := query(t, postgres.URL("postgres"), "SHOW unix_socket_directories"); got != "" {
		t.Errorf("Postgres has a socket in %s", got)
	}
	if got := query(t, postgres.URL("postgres"), "SELECT DISTINCT auth_method FROM pg_hba_file_rules"); got != "scram-sha-256" {
		t.Errorf("Postgres lets in by %s", got)
	}

	for _, password := range []string{"", ":", ":wrong"} {
		address := fmt.Sprintf("postgres://postgres%s@127.0.0.1:%d/postgres?sslmode=disable", password, postgres.Port())
		conn, err := pgx.Connect(within(t, 10*time.Second), address)
		var refused *pgconn.PgError
		if err == nil {
			_ = conn.Close(t.Context())
			t.Errorf("%s is let in", address)
		} else if !errors.As(err, &refused) && !strings.Contains(err.Error(), "password") {
			t.Errorf("%s: %v", address, err)
		}
	}
	for _, password := range []string{"", "wrong"} {
		client := redis.NewClient(&redis.Options{Addr: fmt.Sprintf("127.0.0.1:%d", server.Port()), Password: password, MaxRetries: -1})
		if err := client.Ping(within(t, 10*time.Second)).Err(); err == nil {
			t.Errorf("Redis lets in with %q", password)
		}
		_ = client.Close()
	}

	// Every account can read the arguments of a process.
	for _, pid := range []int{postgres.PID(), server.PID()} {
		arguments, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			t.Skip("no /proc here:", err)
		}
		for name, password := range passwords {
			if strings.Contains(string(arguments), password) {
				t.Errorf("the password of %s is among the arguments %q", name, arguments)
			}
		}
	}
}

// A password stays over a restart. A cluster that let in everyone gets one, and so does
// one that replaces a cluster that was removed.
func TestPasswordsComeWithTheirServer(t *testing.T) {
	t.Parallel()
	dir := workDir(t)
	begin := func() (postgres *devstack.Postgres, server *devstack.Redis) {
		return startPostgres(t, devstack.PostgresOptions{Dir: filepath.Join(dir, "postgres")}), startRedis(t, devstack.RedisOptions{Dir: filepath.Join(dir, "redis")})
	}
	passwordOf := func(address string) string {
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		password, _ := u.User.Password()
		return password
	}
	end := func(postgres *devstack.Postgres, server *devstack.Redis) {
		if err := errors.Join(postgres.Stop(within(t, time.Minute)), server.Stop(within(t, time.Minute))); err != nil {
			t.Fatal(err)
		}
	}
	postgres, server := begin()
	first, firstOfRedis := passwordOf(postgres.URL("postgres")), passwordOf(server.URL(0))
	query(t, postgres.URL("postgres"), "CREATE TABLE orders AS SELECT 'kept' AS note")
	end(postgres, server)

	postgres, server = begin()
	if again := passwordOf(postgres.URL("postgres")); again != first {
		t.Errorf("Postgres' password is %s, not %s", again, first)
	}
	if again := passwordOf(server.URL(0)); again != firstOfRedis {
		t.Errorf("Redis' password is %s, not %s", again, firstOfRedis)
	}
	end(postgres, server)

	// As an earlier release left a cluster.
	if err := errors.Join(os.Remove(filepath.Join(dir, "postgres", "password")),
		os.WriteFile(filepath.Join(dir, "postgres", "data", "pg_hba.conf"), []byte("host all all 127.0.0.1/32 trust\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	postgres, server = begin()
	if got := query(t, postgres.URL("postgres"), "SELECT note FROM orders"); got != "kept" {
		t.Errorf("note %q", got)
	}
	if got := query(t, postgres.URL("postgres"), "SELECT DISTINCT auth_method FROM pg_hba_file_rules"); got != "scram-sha-256" {
		t.Errorf("an old cluster lets in by %s", got)
	}
	end(postgres, server)

	if err := os.RemoveAll(filepath.Join(dir, "postgres", "data")); err != nil {
		t.Fatal(err)
	}
	postgres, server = begin()
	query(t, postgres.URL("postgres"), "SELECT 'it works'")
	end(postgres, server)
}

func TestRootUsesAnAccountThatPostgresAccepts(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root needs another account")
	}
	// t.TempDir is open to root alone, as root's home is.
	closed := t.TempDir()
	if err := os.Chmod(filepath.Dir(closed), 0o700); err != nil {
		t.Fatal(err)
	}

	_, err := devstack.StartPostgres(within(t, time.Minute), devstack.PostgresOptions{Dir: filepath.Join(closed, "postgres")})
	if err == nil || !strings.Contains(err.Error(), "can't enter "+filepath.Dir(closed)+":") {
		t.Errorf("error = %v, want one that names %s, the folder that is closed", err, filepath.Dir(closed))
	}

	dir, cleanup, err := devstack.WorkDir(filepath.Join(closed, "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer cleanup()
	if strings.HasPrefix(dir, closed) {
		t.Fatalf("WorkDir gave %s, which Postgres can't use", dir)
	}
	postgres := startPostgres(t, devstack.PostgresOptions{Dir: dir})
	query(t, postgres.URL("postgres"), "SELECT 'it works'")
	if err := postgres.Stop(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	cleanup()
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("cleanup left %s behind", dir)
	}
}

func TestWorkDirPrefersWhatItIsGiven(t *testing.T) {
	t.Parallel()
	preferred := filepath.Join(workDir(t), "a", "b")
	dir, cleanup, err := devstack.WorkDir(preferred)
	if err != nil {
		t.Fatal(err)
	}
	cleanup()
	if dir != preferred {
		t.Errorf("WorkDir = %s, want %s", dir, preferred)
	}
	if _, err := os.Stat(preferred); err != nil {
		t.Errorf("cleanup removed the preferred folder: %v", err)
	}
}
