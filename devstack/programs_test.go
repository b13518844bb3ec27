package devstack

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func bindir(t *testing.T, path string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func program(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestMissingProgramsNameThePackage(t *testing.T) {
	t.Setenv("PATH", t.TempDir())

	_, err := findPostgres([]string{filepath.Join(t.TempDir(), "*/bin")})
	if !errors.Is(err, ErrNotInstalled) || !strings.Contains(err.Error(), "apt-get install postgresql") {
		t.Errorf("Postgres: error = %v, want ErrNotInstalled with the package to install", err)
	}
	_, err = FindRedis()
	if !errors.Is(err, ErrNotInstalled) || !strings.Contains(err.Error(), "apt-get install redis-server") {
		t.Errorf("Redis: error = %v, want ErrNotInstalled with the package to install", err)
	}
}

func TestHighestVersionWins(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	root := t.TempDir()
	for _, version := range []string{"9", "15", "16"} {
		dir := filepath.Join(root, version, "bin")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		program(t, dir, "initdb")
		if version != "16" { // client programs only
			program(t, dir, "postgres")
		}
	}
	got, err := findPostgres([]string{filepath.Join(root, "*/bin")})
	if want := filepath.Join(root, "15", "bin"); err != nil || got != want {
		t.Errorf("findPostgres = %q, %v; want %q", got, err, want)
	}
}

func TestLinksInPathAreFollowed(t *testing.T) {
	folder := bindir(t, "postgresql/15/bin")
	program(t, folder, "initdb")
	program(t, folder, "postgres")
	path := t.TempDir()
	if err := os.Symlink(filepath.Join(folder, "initdb"), filepath.Join(path, "initdb")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", path)
	got, err := findPostgres(nil)
	if err != nil || got != folder {
		t.Errorf("findPostgres = %q, %v; want %q", got, err, folder)
	}
}

func TestPgConfigIsAskedLast(t *testing.T) {
	folder := bindir(t, "opt/pg/bin")
	program(t, folder, "initdb")
	program(t, folder, "postgres")
	path := t.TempDir()
	script := "#!/bin/sh\necho " + folder + "\n"
	if err := os.WriteFile(filepath.Join(path, "pg_config"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", path)
	got, err := findPostgres(nil)
	if err != nil || got != folder {
		t.Errorf("findPostgres = %q, %v; want %q", got, err, folder)
	}
}

func TestMajorVersion(t *testing.T) {
	t.Parallel()
	for dir, want := range map[string]int{
		"/usr/lib/postgresql/15/bin":           15,
		"/usr/pgsql-17/bin":                    17,
		"/opt/homebrew/opt/postgresql@16/bin":  16,
		"/usr/local/pgsql/bin":                 0,
		"/opt/homebrew/Cellar/postgresql/bin/": 0,
	} {
		if got := majorVersion(dir); got != want {
			t.Errorf("majorVersion(%s) = %d, want %d", dir, got, want)
		}
	}
}
