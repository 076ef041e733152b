package harness

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// RunAs has Caddy run as another user, who gets all of its files. The tests have
// to run as root.
func (c *Caddy) RunAs(uid, gid uint32, groups ...uint32) {
	c.t.Helper()
	c.attr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid, Groups: groups}}
	err := filepath.WalkDir(c.Dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chown(path, int(uid), int(gid))
	})
	if err != nil {
		c.t.Fatal(err)
	}
}
