//go:build linux

package devstack_test

import (
	"bufio"
	"io"
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
			reader := bufio.NewReader(out)
			if line, err := reader.ReadString('\n'); err != nil || line != "runs\n" {
				t.Fatalf("it says %q, %v", line, err)
			}
			if err := cmd.Process.Signal(how); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{}) // when nothing holds the other end of its output any more
			go func() { _, _ = io.Copy(io.Discard, reader); close(ended) }()
			select {
			case <-ended:
			case <-time.After(30 * time.Second):
				t.Fatal("the program runs on")
			}
			if _, err := os.Stat(done); err != nil {
				t.Errorf("it was not told: %v", err)
			}
			_ = cmd.Wait() // it was killed
		})
	}
}
