// Package testenv gives tests real servers: a Postgres database of their own,
// migrated, in a few tens of milliseconds; a Redis database of their own; the
// tasker program. Nothing is shared between two tests but the servers, so
// tests may run in parallel, within a package and across packages.
//
//	func TestMain(m *testing.M) { testenv.Main(m) }
//
//	func TestSomething(t *testing.T) {
//		t.Parallel()
//		pool := testenv.Pool(t, testenv.Database(t))
//		…
//	}
//
// Where the servers come from: from TASKER_TEST_DATABASE_URL (a superuser's
// URL) and TASKER_TEST_REDIS_URL when they are set, as `make test` does, which
// starts both once for all packages and the Ruby specs. Otherwise each test
// process starts its own at first use and stops it at its end. A Redis of
// yours must run with --databases 1024, and its databases 1 to 1000 are
// flushed.
package testenv
