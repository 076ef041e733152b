package control

import (
	"context"
	"log/slog"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// vouchTimeout bounds the time for which a doubted instance is given nothing
// before it is ejected. A platform that does not answer is not waited for as
// long: Verifier says what it does then.
const vouchTimeout = 5 * time.Second

// vouch finds out, once, whether i is still at its address. Without an answer
// in the affirmative it is ejected, and then probed as any other that refuses
// connections.
func (l *Loop) vouch(i *instance) {
	ctx, cancel := context.WithCancel(l.context())
	i.probe = cancel
	slots, voucher, id := i.slots, i.revision.scaler.(scaler.Verifier), i.ID
	network, address, peer := i.Network, i.Address, i.peerCheck()
	l.background(func() {
		// In question is who it is, not how it feels: a connection will do.
		check := Check{Kind: CheckTCP, Timeout: vouchTimeout, peer: peer}
		err := check.probe(ctx, network, address, func(ctx context.Context) error { return voucher.Verify(ctx, id) })
		l.mu.Lock()
		switch {
		case ctx.Err() != nil:
		case err == nil:
			i.stopProbe()
			slots.Verify()
			l.log().Debug("the instance is still at its address", slog.String("instance", id), slog.String("address", address))
		default:
			i.stopProbe()
			i.lastProbe = err
			l.log().Debug("the platform does not confirm the instance", slog.String("instance", id), slog.String("address", address), slog.Any("error", err))
			slots.Eject()
		}
		l.mu.Unlock()
		l.Trigger()
	})
}

// ejectedFor says why an instance was ejected.
func ejectedFor(i *reserver.Instance) string {
	switch i.EjectedFor() {
	case reserver.Failed:
		return "three requests in a row got no answer"
	case reserver.Suspected:
		return "it is no longer at its address"
	}
	return "a connection to it could not be made"
}
