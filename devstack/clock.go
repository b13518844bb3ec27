package devstack

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"
)

//go:embed wrongclock.txt
var wrongClock []byte

// ErrNoWrongClock says that no process can be given a wrong clock here.
var ErrNoWrongClock = errors.New("a clock can't be set wrong here: it takes Linux and a C compiler (apt-get install gcc libc6-dev)")

// WrongClock is the environment of a process that asks the C library what time it
// is, and is told so much more. What it measures in time that passes is right, and so
// are its timers, other than with libfaketime, under which Postgres's timeouts never
// come. A Go program asks the kernel, and can't be deceived. Dir is where the library
// is built that does it.
func WrongClock(ctx context.Context, dir string, ahead time.Duration) (env []string, err error) {
	compiler, err := exec.LookPath("cc")
	if err != nil || runtime.GOOS != "linux" {
		return nil, ErrNoWrongClock
	}
	library := filepath.Join(dir, "wrongclock.so")
	if _, err := os.Stat(library); err != nil {
		source := filepath.Join(dir, "wrongclock.c")
		if err := os.WriteFile(source, wrongClock, 0o644); err != nil {
			return nil, err
		}
		if said, err := exec.CommandContext(ctx, compiler, "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl").CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build the wrong clock: %w\n%s", err, said)
		}
	}
	return []string{"LD_PRELOAD=" + library, fmt.Sprintf("WRONG_CLOCK=%d", int64(ahead.Seconds()))}, nil
}
