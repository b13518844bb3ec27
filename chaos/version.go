//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/taskerhq/tasker/migrations"
)

// version is what processes run: this source, or that of an older revision.
type version struct {
	program    string // this command
	bridge     string // the folder that Ruby loads the gem from
	boot       string
	migrations int
}

func versionAt(dir, program string, migrations int) (*version, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	return &version{
		program: program, bridge: filepath.Join(dir, "ruby_bridge", "lib"), boot: filepath.Join(dir, "chaos", "boot.rb"), migrations: migrations,
	}, nil
}

// buildRevision builds an older revision of this repository in a folder of its
// own.
func buildRevision(ctx context.Context, revision, dir string) (*version, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	archive := filepath.Join(dir, "source.tar")
	program := filepath.Join(dir, "chaos-worker")
	for _, c := range [][]string{
		{"git", "archive", "--output", archive, revision},
		{"tar", "--extract", "--file", archive, "--directory", dir},
		{"go", "build", "-C", dir, "-trimpath", "-o", program, "./chaos"},
	} {
		if text, err := exec.CommandContext(ctx, c[0], c[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build %s: %s: %w\n%s", revision, c[0], err, text)
		}
	}
	ups, err := filepath.Glob(filepath.Join(dir, "migrations", "sql", "*.up.sql"))
	if err != nil {
		return nil, err
	}
	return versionAt(dir, program, len(ups))
}

// findVersions finds this source, from whose folder this program is started, and
// builds the older one in dir.
func (r *run) findVersions(ctx context.Context, dir string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if r.this, err = versionAt(".", self, len(migrations.All())); err != nil || r.revision == "" {
		return err
	}
	say("building %s", r.revision)
	if r.old, err = buildRevision(ctx, r.revision, filepath.Join(dir, "old")); err != nil {
		return err
	}
	if r.old.migrations > r.this.migrations {
		return fmt.Errorf("%s has %d migrations, and this source %d: -old takes an earlier revision", r.revision, r.old.migrations, r.this.migrations)
	}
	return nil
}
