package process

import (
	"context"
	"net"
	"slices"
)

// Confirm tells whether a probe that passed reached the instance.
func (r *runner) Confirm(_ context.Context, instanceID string) error {
	in := r.find(instanceID)
	if in == nil {
		return errEnded
	}
	if err := r.confirm(in); err != nil {
		return err
	}
	if in.keep {
		r.noteReady(in)
	}
	return nil
}

// CheckPeer tells whether a new connection leads to the instance.
func (r *runner) CheckPeer(instanceID string, conn net.Conn) error {
	in := r.find(instanceID)
	if in == nil {
		return errEnded
	}
	return in.checkPeer(conn)
}

// Pin returns an address at which nothing but the instance can be reached.
func (r *runner) Pin(instanceID string) (address string, release func(), err error) {
	in := r.find(instanceID)
	if in == nil {
		return "", nil, errEnded
	}
	return in.pin()
}

// find returns an instance that has not ended, or nil.
func (r *runner) find(id string) *instance {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.IndexFunc(r.instances, func(in *instance) bool { return in.id == id })
	if i < 0 {
		return nil
	}
	return r.instances[i]
}

func (r *runner) confirm(in *instance) error {
	switch {
	case in.passed != nil:
		return in.passed.accepted()
	case in.adopted && r.plan.Load().listen == listenFD:
		return r.confirmAdopted(in)
	case in.port != 0:
		return in.confirmListener()
	}
	return nil
}

// noteReady writes down, for the next Caddy, that a kept instance is ready.
func (r *runner) noteReady(in *instance) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !in.record.Ready {
		r.recorded(in.record.becameReady(recordDir(r.env.DataDir)))
	}
}
