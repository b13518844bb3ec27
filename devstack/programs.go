package devstack

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ErrNotInstalled is returned when a server's program isn't on this machine.
// The error that wraps it names the package to install.
var ErrNotInstalled = errors.New("not installed")

// installed says where distributions put the server programs, which they
// leave out of PATH. `*` stands for the major version.
var installed = []string{
	"/usr/lib/postgresql/*/bin", // Debian, Ubuntu
	"/usr/pgsql-*/bin",          // packages of postgresql.org for RHEL
	"/opt/homebrew/opt/postgresql@*/bin",
	"/usr/local/opt/postgresql@*/bin",
}

// FindPostgres returns the folder with the programs initdb and postgres: the
// one in PATH, else the highest version installed.
func FindPostgres() (string, error) { return findPostgres(installed) }

func findPostgres(patterns []string) (string, error) {
	var candidates []string
	if initdb, err := exec.LookPath("initdb"); err == nil {
		// initdb looks for postgres beside itself: follow links to where it lives.
		if initdb, err = filepath.EvalSymlinks(initdb); err == nil {
			candidates = append(candidates, filepath.Dir(initdb))
		}
	}
	for _, pattern := range patterns {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return "", fmt.Errorf("look for Postgres in %s: %w", pattern, err)
		}
		slices.SortFunc(found, func(a, b string) int { return majorVersion(b) - majorVersion(a) })
		candidates = append(candidates, found...)
	}
	if output, err := exec.Command("pg_config", "--bindir").Output(); err == nil {
		candidates = append(candidates, strings.TrimSpace(string(output)))
	}
	for _, dir := range candidates {
		if executable(filepath.Join(dir, "initdb")) && executable(filepath.Join(dir, "postgres")) {
			return dir, nil
		}
	}
	return "", fmt.Errorf("the Postgres server is %w (looked for initdb and postgres in PATH, %s and pg_config's folder): "+
		"apt-get install postgresql, or brew install postgresql; or run tasker worker with a server of yours (TASKER_DATABASE_URL)",
		ErrNotInstalled, strings.Join(patterns, ", "))
}

// majorVersion is the number in …/15/bin, …/pgsql-15/bin, …/postgresql@15/bin.
func majorVersion(bindir string) int {
	folder := filepath.Base(filepath.Dir(bindir))
	digits := folder[strings.LastIndexAny(folder, "-@")+1:]
	version, err := strconv.Atoi(digits)
	if err != nil {
		return 0
	}
	return version
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}

// FindRedis returns the path of redis-server, or of valkey-server, which
// speaks the same protocol.
func FindRedis() (string, error) {
	for _, name := range []string{"redis-server", "valkey-server"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("the Redis server is %w (looked for redis-server and valkey-server in PATH): "+
		"apt-get install redis-server, or brew install redis; or run tasker worker with a server of yours (TASKER_REDIS_URL)", ErrNotInstalled)
}
