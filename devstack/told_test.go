//go:build linux

package devstack_test

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// `go run` passes on no signal but INT: killed, it would leave the program running, and the
// servers that this has started.
func TestAProgramIsToldOfTheEndOfGoRun(t *testing.T) {
	t.Parallel()
	for _, how := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL, syscall.SIGHUP} {
		t.Run(how.String(), func(t *testing.T) {
			t.Parallel()
			done := filepath.Join(t.TempDir(), "done")
			cmd := exec.Command("go", "run", "./testdata/told", done)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "runs\n" {
				t.Fatalf("it says %q, %v", line, err)
			}
			if err := cmd.Process.Signal(how); err != nil {
				t.Fatal(err)
			}
			for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
				if _, err := os.Stat(done); err == nil {
					break
				}
				if time.Now().After(end) {
					t.Fatal("the program runs on")
				}
			}
			_ = cmd.Wait() // it was killed
		})
	}
}
