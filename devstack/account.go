package devstack

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// account is the user that Postgres runs as when we are root.
type account struct {
	name     string
	uid, gid uint32
}

// postgresAccount is nil when this process isn't root: Postgres then runs as
// the same user.
func postgresAccount() (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil //nolint:nilnil // no account is an answer: "as we are"
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
		if uidErr != nil || gidErr != nil || uid == 0 {
			continue
		}
		return &account{name: name, uid: uint32(uid), gid: uint32(gid)}, nil
	}
	return nil, fmt.Errorf("Postgres refuses to run as root, and there is neither a user postgres nor nobody to run it as: " +
		"run this command as another user, or add one: useradd --system postgres")
}

func (a *account) credential() *syscall.Credential {
	return &syscall.Credential{Uid: a.uid, Gid: a.gid}
}

// own hands a folder and everything in it to the account. A nil account owns
// what we own already.
func (a *account) own(dir string) error {
	if a == nil {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(a.uid), int(a.gid))
	})
}

// canReach asks the kernel, by trying it, whether the account can enter dir;
// permission bits alone don't tell (access lists, mounts, security modules).
func (a *account) canReach(ctx context.Context, dir string) bool {
	if a == nil {
		return true
	}
	enter := command{name: "cd " + dir, path: "/bin/sh", args: []string{"-c", `cd -- "$1"`, "sh", dir}, dir: "/", runAs: a, onDeath: syscall.SIGKILL}
	return enter.run(ctx) == nil
}

// obstacle is the topmost parent of dir, or dir itself, that the account
// can't enter; "" when it can enter them all.
func (a *account) obstacle(ctx context.Context, dir string) string {
	if a.canReach(ctx, dir) {
		return ""
	}
	if parent := filepath.Dir(dir); parent != dir {
		if found := a.obstacle(ctx, parent); found != "" {
			return found
		}
	}
	return dir
}
