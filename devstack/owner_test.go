package devstack_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/taskerhq/tasker/devstack"
)

// ownServers is what the test program does when it is started as the owner
// that TestServersEndWithTheirOwner kills.
func ownServers(dir string) {
	postgres, err := devstack.StartPostgres(context.Background(), devstack.PostgresOptions{Dir: filepath.Join(dir, "postgres")})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	redis, err := devstack.StartRedis(context.Background(), devstack.RedisOptions{Dir: filepath.Join(dir, "redis")})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ready", postgres.PID(), redis.PID())
	select {}
}

func TestServersEndWithTheirOwner(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells children of their parent's death")
	}
	dir := workDir(t)
	owner := exec.Command(os.Args[0])
	owner.Env = append(os.Environ(), "DEVSTACK_TEST_OWNER="+dir)
	owner.Stderr = os.Stderr
	stdout, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	var postgres, redis int
	if _, scanErr := fmt.Sscanf(line, "ready %d %d", &postgres, &redis); err != nil || scanErr != nil {
		_ = owner.Process.Kill()
		t.Fatalf("the owner says %q (%v)", line, err)
	}
	// Threads come and go in a Go program; the servers must not go with them.
	time.Sleep(200 * time.Millisecond)
	for _, pid := range []int{postgres, redis} {
		if !alive(pid) {
			t.Fatalf("process %d ended while its owner lives", pid)
		}
	}

	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait()
	deadline := time.Now().Add(20 * time.Second)
	for alive(postgres) || alive(redis) {
		if time.Now().After(deadline) {
			t.Fatalf("20 s after their owner was killed: Postgres alive %v, Redis alive %v", alive(postgres), alive(redis))
		}
		time.Sleep(10 * time.Millisecond)
	}
	// Postgres wrote its checkpoint: the folder can be used without recovery.
	if _, err := os.Stat(filepath.Join(dir, "postgres", "data", "postmaster.pid")); !os.IsNotExist(err) {
		t.Errorf("Postgres didn't end in good order: its pid file is still there (%v)", err)
	}
}

// alive reads /proc: a dead process that nobody has waited for yet still takes
// signals.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	// pid (name) state …
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	return len(fields) > 0 && fields[0] != "Z" && fields[0] != "X"
}
