package process

import (
	"context"
	"slices"
)

// Confirm tells whether a probe that passed reached the instance.
func (r *runner) Confirm(_ context.Context, instanceID string) error {
	r.mu.Lock()
	i := slices.IndexFunc(r.instances, func(in *instance) bool { return in.id == instanceID })
	var in *instance
	if i >= 0 {
		in = r.instances[i]
	}
	r.mu.Unlock()
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

func (r *runner) confirm(in *instance) error {
	switch {
	case in.passed != nil:
		return in.passed.accepted()
	case in.adopted && r.plan.Load().listen == listenFD:
		return r.confirmAdopted(in)
	case in.port != 0:
		return checkOwner(in.port, in.child, in.id)
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
