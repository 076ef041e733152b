//go:build unix

package process

import (
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"

	"github.com/caddy-usher/usher/scaler"
)

func (a *account) setIDs(u *user.User) error {
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return fmt.Errorf("the user id %q is no number: %w", u.Uid, err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return fmt.Errorf("the group id %q is no number: %w", u.Gid, err)
	}
	a.UID, a.GID = uint32(uid), uint32(gid)
	a.Own = os.Geteuid() == int(uid)
	groups, err := u.GroupIds()
	if err != nil {
		return fmt.Errorf("its groups cannot be found out: %w", err)
	}
	for _, g := range groups {
		if gid, err := strconv.ParseUint(g, 10, 32); err == nil {
			a.Groups = append(a.Groups, uint32(gid))
		}
	}
	return nil
}

// checkRight tells whether Caddy may start processes as this user.
func (a *account) checkRight() *scaler.Failure {
	if a == nil || a.Own || maySwitch() {
		return nil
	}
	return &scaler.Failure{
		Reason: scaler.ReasonForbidden, ForGood: true, Short: "switching to the user is not permitted",
		Detail: fmt.Sprintf("user %s: Caddy runs as user %d and may not switch to it; run Caddy as root, or give it CAP_SETUID, CAP_SETGID and CAP_KILL", a.Name, os.Geteuid()),
	}
}

// own gives files to the user.
func (a *account) own(files ...*os.File) {
	if a == nil || a.Own {
		return
	}
	for _, f := range files {
		// Without CAP_CHOWN they stay Caddy's, and can be written all the same.
		_ = f.Chown(int(a.UID), -1)
	}
}

// credential returns what the child switches to, or nil.
func (a *account) credential() *syscall.Credential {
	if a == nil || a.Own {
		return nil
	}
	return &syscall.Credential{Uid: a.UID, Gid: a.GID, Groups: a.Groups}
}
