package testenv_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/taskerhq/tasker/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func scan[T any](t *testing.T, pool *pgxpool.Pool, sql string, args ...any) T {
	t.Helper()
	var value T
	if err := pool.QueryRow(context.Background(), sql, args...).Scan(&value); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return value
}

func TestDatabaseIsMigratedAndTheTestsOwn(t *testing.T) {
	t.Parallel()
	first, second := testenv.Pool(t, testenv.Database(t)), testenv.Pool(t, testenv.Database(t))
	if _, err := first.Exec(context.Background(), "CREATE TABLE only_here ()"); err != nil {
		t.Fatal(err)
	}
	for _, pool := range []*pgxpool.Pool{first, second} {
		if !scan[bool](t, pool, "SELECT to_regclass('tasker.tasks') IS NOT NULL") {
			t.Error("tasker.tasks is missing")
		}
	}
	if scan[bool](t, second, "SELECT to_regclass('only_here') IS NOT NULL") {
		t.Error("a test sees the tables of another")
	}
}

func TestEmptyDatabaseHasNoSchema(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t, testenv.EmptyDatabase(t))
	if scan[bool](t, pool, "SELECT to_regnamespace('tasker') IS NOT NULL") {
		t.Error("the schema tasker exists")
	}
}

func TestDatabaseGoesWithTheTest(t *testing.T) {
	t.Parallel()
	var name string
	var left *pgxpool.Pool
	t.Run("a test that leaves a connection open", func(t *testing.T) {
		url := testenv.Database(t)
		var err error
		if left, err = pgxpool.New(context.Background(), url); err != nil {
			t.Fatal(err)
		}
		name = scan[string](t, left, "SELECT current_database()::text")
	})
	defer left.Close()
	if !strings.HasPrefix(name, "test_testdatabasegoeswiththetest_") {
		t.Errorf("the name %s doesn't tell whose it is", name)
	}
	other := testenv.Pool(t, testenv.EmptyDatabase(t))
	if scan[bool](t, other, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name) {
		t.Errorf("database %s is still there", name)
	}
}

func TestManyTestsAtOnce(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	testenv.Database(t)
	t.Logf("a database took %v", time.Since(begin).Round(time.Millisecond))
	for range 16 {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			begin := time.Now()
			pool := testenv.Pool(t, testenv.Database(t))
			t.Logf("a database took %v", time.Since(begin).Round(time.Millisecond))
			scan[int](t, pool, "SELECT count(*) FROM tasker.tasks")
		})
	}
}

func TestRedisDatabaseIsTheTestsOwnAndEmpty(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	connect := func(t *testing.T) *redis.Client {
		t.Helper()
		options, err := redis.ParseURL(testenv.Redis(t))
		if err != nil {
			t.Fatal(err)
		}
		if options.DB == 0 {
			t.Error("database 0 is for the counter")
		}
		client := redis.NewClient(options)
		t.Cleanup(func() { _ = client.Close() })
		return client
	}
	var left *redis.Client
	t.Run("a test that leaves keys", func(t *testing.T) {
		left = connect(t)
		other := connect(t)
		if err := left.Set(ctx, "key", "value", 0).Err(); err != nil {
			t.Fatal(err)
		}
		if n := other.DBSize(ctx).Val(); n != 0 {
			t.Errorf("another test's database has %d keys", n)
		}
	})
	again := redis.NewClient(left.Options())
	defer again.Close()
	if n := again.DBSize(ctx).Val(); n != 0 {
		t.Errorf("after the test its database has %d keys", n)
	}
}
