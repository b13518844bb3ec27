package main

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/taskerhq/tasker/testenv"
)

// The test program is the command itself when it is started by servers().
func TestMain(m *testing.M) {
	if os.Getenv("SERVERS_TEST_AS_MAIN") != "" {
		main()
	}
	os.Exit(m.Run())
}

func servers(t *testing.T, arguments ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, os.Args[0], arguments...)
	cmd.Stderr = os.Stderr
	for _, entry := range os.Environ() {
		// Servers of its own, though `make test` has some for all of us.
		if !strings.HasPrefix(entry, testenv.DatabaseURLVariable) && !strings.HasPrefix(entry, testenv.RedisURLVariable) {
			cmd.Env = append(cmd.Env, entry)
		}
	}
	cmd.Env = append(cmd.Env, "SERVERS_TEST_AS_MAIN=1", testenv.BinaryVariable+"=/does/not/matter")
	return cmd
}

const printServers = `echo "$TASKER_TEST_DATABASE_URL"; echo "$TASKER_TEST_REDIS_URL"; echo "$TASKER_BIN"; `

// listening says whether a server answers at the address of a URL.
func listening(t *testing.T, address string) bool {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.DialTimeout("tcp", u.Host, time.Second)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

func exitCode(t *testing.T, err error) int {
	t.Helper()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if exit == nil {
		return 0
	}
	return exit.ExitCode()
}

func TestCommandGetsServersAndItsExitCodeIsOurs(t *testing.T) {
	t.Parallel()
	output, err := servers(t, "--", "sh", "-c", printServers+"exit 7").Output()
	if got := exitCode(t, err); got != 7 {
		t.Errorf("exit code %d, want the command's, 7", got)
	}
	lines := strings.Fields(string(output))
	if len(lines) != 3 || lines[2] != "/does/not/matter" {
		t.Fatalf("the command saw %q, want two addresses and the program named before", lines)
	}
	for _, address := range lines[:2] {
		if listening(t, address) {
			t.Errorf("%s still runs", address)
		}
	}
}

func TestSignalEndsCommandAndServers(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			// The inner sleep is what a signal to the shell alone would leave.
			cmd := servers(t, "sh", "-c", printServers+"sleep 300; true")
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(stdout)
			var addresses []string
			for len(addresses) < 3 && lines.Scan() {
				addresses = append(addresses, lines.Text())
			}
			if len(addresses) < 3 || !listening(t, addresses[0]) || !listening(t, addresses[1]) {
				t.Fatalf("the servers named in %q don't run", addresses)
			}
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if lines.Scan() { // ends when nothing holds the pipe any more
				t.Errorf("unexpected output %q", lines.Text())
			}
			if got, want := exitCode(t, cmd.Wait()), 128+int(sig); got != want {
				t.Errorf("exit code %d, want %d", got, want)
			}
			for _, address := range addresses[:2] {
				if listening(t, address) {
					t.Errorf("%s still runs", address)
				}
			}
		})
	}
}

func TestUnknownCommandIsNotTheCommandsFailure(t *testing.T) {
	t.Parallel()
	err := servers(t, "--", "there-is-no-such-command").Run()
	if got := exitCode(t, err); got != exitFailed {
		t.Errorf("exit code %d, want %d", got, exitFailed)
	}
}

func TestUsage(t *testing.T) {
	t.Parallel()
	if got := exitCode(t, servers(t, "--").Run()); got != exitUsage {
		t.Errorf("exit code %d, want %d", got, exitUsage)
	}
}
