package process

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"

	"github.com/caddy-usher/usher/scaler"
)

// account is a user that instances run as.
type account struct {
	Name   string
	UID    uint32
	GID    uint32
	Groups []uint32
	Home   string
	// Own is true if Caddy runs as this user already: nothing is switched.
	Own bool
}

// socketUser is the user that the sockets of instances belong to. A passed one
// is made by Caddy.
func (p *plan) socketUser() uint32 {
	if p.account == nil || p.account.Own || p.listen == listenFD {
		return uint32(os.Geteuid())
	}
	return p.account.UID
}

// lookupAccount finds a user by name, else by number.
func lookupAccount(name string) (*account, error) {
	u, err := user.Lookup(name)
	if _, unknown := errors.AsType[user.UnknownUserError](err); unknown {
		if _, numeric := strconv.ParseUint(name, 10, 32); numeric == nil {
			u, err = user.LookupId(name)
		}
	}
	if err != nil {
		return nil, &scaler.Failure{
			Reason: scaler.ReasonNotFound, ForGood: true, Short: "the user does not exist",
			Detail: fmt.Sprintf("user %s does not exist on this machine, or cannot be looked up; create it, or change user", name), Err: err,
		}
	}
	a := &account{Name: u.Username, Home: u.HomeDir}
	if err := a.setIDs(u); err != nil {
		return nil, fmt.Errorf("user %s: %w", name, err)
	}
	return a, nil
}
