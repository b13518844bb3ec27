package devstack

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// WorkDir returns a folder that servers can keep their data in: the preferred
// one when the user that Postgres runs as can enter it (it is created if
// missing), else a temporary one. That differs from "preferred" only for root,
// whose home folder is closed to the user that Postgres runs as.
//
// cleanup removes a temporary folder and leaves the preferred one alone. With
// preferred == "" the folder is always temporary.
func WorkDir(preferred string) (dir string, cleanup func(), err error) {
	runAs, err := postgresAccount()
	if err != nil {
		return "", nil, err
	}
	if preferred != "" {
		if dir, err = filepath.Abs(preferred); err != nil {
			return "", nil, fmt.Errorf("find folder %s: %w", preferred, err)
		}
		if err = os.MkdirAll(dir, 0o755); err != nil {
			return "", nil, fmt.Errorf("create folder for the servers' data: %w", err)
		}
		if runAs.canReach(context.Background(), dir) {
			return dir, func() {}, nil
		}
	}
	if dir, err = os.MkdirTemp("", "tasker-"); err != nil {
		return "", nil, fmt.Errorf("create folder for the servers' data: %w", err)
	}
	cleanup = func() { _ = os.RemoveAll(dir) }
	// MkdirTemp makes folders that only their owner may enter.
	if err = os.Chmod(dir, 0o755); err != nil {
		cleanup()
		return "", nil, fmt.Errorf("open folder for the servers' data: %w", err)
	}
	if obstacle := runAs.obstacle(context.Background(), dir); obstacle != "" {
		cleanup()
		return "", nil, fmt.Errorf("user %s, which Postgres runs as, can't enter %s: set TMPDIR to a folder that every user can enter", runAs.name, obstacle)
	}
	return dir, cleanup, nil
}
