package process

import (
	"errors"
	"fmt"
	"os/user"
	"strconv"
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

// lookupAccount finds a user by name, else by number.
func lookupAccount(name string) (*account, error) {
	u, err := user.Lookup(name)
	if _, unknown := errors.AsType[user.UnknownUserError](err); unknown {
		if _, numeric := strconv.ParseUint(name, 10, 32); numeric == nil {
			u, err = user.LookupId(name)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("user %s does not exist on this machine, or cannot be looked up: %w", name, err)
	}
	a := &account{Name: u.Username, Home: u.HomeDir}
	if err := a.setIDs(u); err != nil {
		return nil, fmt.Errorf("user %s: %w", name, err)
	}
	return a, nil
}
