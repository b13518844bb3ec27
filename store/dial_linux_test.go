package store_test

import (
	"context"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/taskerhq/tasker/devstack"
	"github.com/taskerhq/tasker/store"
)

// What Postgres says gets lost on its way, and nobody is told: no connection is
// closed. It is a network of its own, for which one needs to be root.
func TestAServerThatIsGoneWithoutAWordIsNoticedWithinSeconds(t *testing.T) {
	t.Parallel()
	const inside = "TASKER_TEST_OWN_NETWORK"
	if os.Getenv(inside) == "" {
		for _, program := range []string{"unshare", "ip"} {
			if _, err := exec.LookPath(program); err != nil {
				t.Skip("it takes util-linux and iproute2")
			}
		}
		if err := exec.CommandContext(t.Context(), "unshare", "--net", "true").Run(); err != nil {
			t.Skipf("no network of its own may be made here: %v", err)
		}
		again := exec.CommandContext(t.Context(), "unshare", "--net", os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v")
		again.Env = append(os.Environ(), inside+"=1")
		if said, err := again.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, said)
		}
		return
	}

	network := func(command ...string) {
		t.Helper()
		if said, err := exec.CommandContext(context.WithoutCancel(t.Context()), command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", command, err, said)
		}
	}
	network("ip", "link", "set", "lo", "up")
	network("ip", "rule", "add", "pref", "100", "lookup", "local") // instead of the one before all others
	network("ip", "rule", "del", "pref", "0")
	dir, cleanup, err := devstack.WorkDir("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cleanup)
	postgres, err := devstack.StartPostgres(t.Context(), devstack.PostgresOptions{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = postgres.Kill() })
	pool, err := store.Open(t.Context(), postgres.URL("postgres"), "test", 2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	// One is idle and listens, one is asked something while nothing comes through.
	listening, asking := make(chan error, 1), make(chan error, 1)
	hears := make(chan struct{})
	go func() {
		listening <- store.New(pool).ListenOn(t.Context(), "anything", func() { close(hears) }, func(string) {})
	}()
	<-hears
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()

	port := strconv.Itoa(int(pool.Config().ConnConfig.Port))
	network("ip", "rule", "add", "pref", "1", "ipproto", "tcp", "sport", port, "blackhole")
	began := time.Now()
	go func() { _, err := conn.Exec(t.Context(), `SELECT 1`); asking <- err }()
	for what, ended := range map[string]chan error{"who listens": listening, "who asks": asking} {
		select {
		case err := <-ended:
			t.Logf("%s noticed after %s: %v", what, time.Since(began).Round(time.Millisecond), err)
			if err == nil {
				t.Errorf("%s was answered", what)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("%s has noticed nothing after 20 s", what)
		}
	}
	network("ip", "rule", "del", "pref", "1")
	if _, err := pool.Exec(t.Context(), `SELECT 1`); err != nil {
		t.Errorf("when the network is back: %v", err)
	}
}
