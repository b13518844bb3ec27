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

// BuildTasker compiles the tasker program into a folder. It works from any
// folder inside the module.
func BuildTasker(ctx context.Context, dir string) (string, error) {
	path := filepath.Join(dir, "tasker")
	build := exec.CommandContext(ctx, "go", "build", "-o", path, "github.com/taskerhq/tasker/cmd/tasker")
	if output, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build tasker: %w\n%s", err, output)
	}
	return path, nil
}
