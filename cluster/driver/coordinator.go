package driver

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/caddy-usher/usher/cluster"
)

// patience is for how long the coordinator is waited for. The Node needs an
// answer within half a lease.
func (d *Driver) patience() time.Duration { return d.c.Options.Lease / 2 * 9 / 10 }

var errNoAnswer = errors.New("the coordinator does not answer")

func (d *Driver) read(o cluster.Read) {
	d.call(func(ctx context.Context) cluster.Event {
		v, err := d.c.Coordinator.Read(ctx)
		d.answered(err)
		return cluster.ReadDone{ID: o.ID, View: v, Err: err}
	}, cluster.ReadDone{ID: o.ID, Err: errNoAnswer})
}

func (d *Driver) swap(o cluster.Swap) {
	d.call(func(ctx context.Context) cluster.Event {
		result, v, err := d.c.Coordinator.Swap(ctx, o.Expect, o.Next)
		d.answered(err)
		return cluster.SwapDone{ID: o.ID, Result: result, View: v}
	}, cluster.SwapDone{ID: o.ID, Result: cluster.Unknown})
}

// call makes a call that is answered once: by what it returns, or, when that
// takes too long, by what is to be thought then.
func (d *Driver) call(do func(context.Context) cluster.Event, silence cluster.Event) {
	d.running.Go(func() {
		ctx, cancel := context.WithTimeoutCause(d.ctx, d.patience(), errNoAnswer)
		answer := make(chan cluster.Event, 1)
		d.running.Go(func() {
			defer cancel()
			answer <- do(ctx)
		})
		t := time.NewTimer(d.patience() + d.patience()/20)
		defer t.Stop()
		select {
		case e := <-answer:
			d.post(e)
		case <-t.C:
			d.answered(errNoAnswer)
			d.post(silence)
		case <-d.ctx.Done():
		}
	})
}

// answered says when the coordinator fails, and when it is back.
func (d *Driver) answered(err error) {
	if d.ctx.Err() != nil {
		return
	}
	if err != nil {
		d.trouble("coordinator", "the coordinator cannot be used; all go on with what they hold, and no member can come, go or take over", slog.Any("error", err))
		return
	}
	d.better("coordinator", "the coordinator can be used again")
}
