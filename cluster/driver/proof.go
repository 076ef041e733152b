package driver

import (
	"context"
	"log/slog"
	"time"

	"github.com/caddy-usher/usher/cluster"
	"github.com/caddy-usher/usher/cluster/link"
)

// The search for proof that a Caddy has ended: as long as there is no stream to
// one that matters, its address is asked. For the leader all others matter, for
// the others the leader does.

// proofPause is the time between two questions. A Caddy that was killed is
// found out by the first one, because its connections break.
const proofPause = 250 * time.Millisecond

// lookForProof asks after the Caddys of a view that are missed.
func (d *Driver) lookForProof() {
	v := d.node.View()
	leads := d.node.Leads()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, peers := range [][]cluster.Peer{v.Members, v.Lost} {
		for _, p := range peers {
			if p.Boot == d.c.Self.Boot || d.streams[p.Boot] != nil || d.proving[p.Boot] || !leads && p.Boot != v.Leader {
				continue
			}
			d.proving[p.Boot] = true
			d.running.Go(func() { d.prove(p) })
		}
	}
}

// prove asks once whether a Caddy has ended.
func (d *Driver) prove(p cluster.Peer) {
	defer func() {
		d.mu.Lock()
		delete(d.proving, p.Boot)
		d.mu.Unlock()
	}()
	began := time.Now()
	dead, err := d.link.Dead(d.ctx, p.Address, p.ID, p.Boot)
	if dead {
		d.c.Logger.Info("a member has ended for sure", slog.String("member", p.ID))
		d.post(cluster.Dead{Boot: p.Boot})
		return
	}
	if err != nil && d.ctx.Err() == nil {
		d.c.Logger.Debug("a member that is missed is not proven to have ended", slog.String("member", p.ID), slog.Any("error", err))
	}
	t := time.NewTimer(proofPause - time.Since(began))
	defer t.Stop()
	select {
	case <-t.C:
		d.wakeUp()
	case <-d.ctx.Done():
	}
}

// reach makes sure that the end of a Caddy can be proven later, for as long as
// its stream stands: what lies between may be in order again.
func (d *Driver) reach(s *stream) {
	peer := s.conn.Peer()
	for d.reachOnce(peer) != nil {
		t := time.NewTimer(d.c.Options.Lease)
		select {
		case <-t.C:
		case <-d.ctx.Done():
			t.Stop()
			return
		}
		d.mu.Lock()
		current := d.streams[peer.Boot] == s
		d.mu.Unlock()
		if !current {
			return
		}
	}
}

func (d *Driver) reachOnce(peer link.Hello) error {
	ctx, cancel := context.WithTimeout(d.ctx, d.c.Options.Lease)
	defer cancel()
	err := d.link.Reach(ctx, peer)
	switch {
	case d.ctx.Err() != nil:
	case err != nil:
		d.trouble("reach "+peer.Boot, "another member cannot be reached where it says it can: if it is lost, its slots are not used again before lost_after; check 'advertise' there, and what lies between",
			slog.String("member", peer.ID), slog.String("address", peer.Address), slog.Any("error", err))
	default:
		d.better("reach "+peer.Boot, "the member can be reached where it says it can", slog.String("member", peer.ID))
	}
	return err
}

// reachAll does so once for all members of a view that is new: the one that leads
// next may never have had a stream to the others.
func (d *Driver) reachAll(v cluster.View) {
	for _, p := range v.Members {
		if p.Boot != d.c.Self.Boot {
			hello := link.Hello{ID: p.ID, Boot: p.Boot, Address: p.Address}
			d.running.Go(func() {
				ctx, cancel := context.WithTimeout(d.ctx, d.c.Options.Lease)
				defer cancel()
				_ = d.link.Reach(ctx, hello) // the leader, which it has a stream to, tells of trouble
			})
		}
	}
}
