package testenv

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TaskerBinary returns the path of the tasker program: TASKER_BIN, or one that
// is built once for this test process.
func TaskerBinary(t testing.TB) string {
	t.Helper()
	path, err := process.binary.get(func() (string, error) {
		if path := os.Getenv(BinaryVariable); path != "" {
			return path, nil
		}
		dir, err := workDir()
		if err != nil {
			return "", err
		}
		return BuildTasker(context.Background(), dir)
	})
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	return path
}

// CrashingBinary returns the path of a tasker program with crash points, which
// is built once for this test process: see package crash.
func CrashingBinary(t testing.TB) string {
	t.Helper()
	path, err := process.crashing.get(func() (string, error) {
		dir, err := workDir()
		if err != nil {
			return "", err
		}
		return build(context.Background(), filepath.Join(dir, "crashing-tasker"), "-tags", "crashpoints")
	})
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	return path
}

// BuildTasker compiles the tasker program into a folder. It works from any
// folder inside the module.
func BuildTasker(ctx context.Context, dir string) (string, error) {
	return build(ctx, filepath.Join(dir, "tasker"))
}

func build(ctx context.Context, path string, flags ...string) (string, error) {
	args := append([]string{"build", "-o", path}, flags...)
	build := exec.CommandContext(ctx, "go", append(args, "github.com/taskerhq/tasker/cmd/tasker")...)
	if output, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build tasker: %w\n%s", err, output)
	}
	return path, nil
}
