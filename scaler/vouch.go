package scaler

import (
	"context"
	"time"

	"go.uber.org/zap"
)

// vouchTimeout bounds the time for which a doubted instance is given nothing
// before it is ejected. A platform that does not answer is not waited for as
// long: Voucher says what it does then.
const vouchTimeout = 5 * time.Second

// vouch finds out, once, whether i is still at its address. Without an answer
// in the affirmative it is ejected, and then probed as any other that refuses
// connections.
func (l *Loop) vouch(i *instance) {
	ctx, cancel := context.WithCancel(l.context())
	i.probe = cancel
	slots, voucher, id := i.slots, i.revision.scaler.(Voucher), i.ID
	network, address := i.Network, i.Address
	l.background(func() {
		// In question is who it is, not how it feels: a connection will do.
		check := Check{Kind: CheckTCP, Timeout: vouchTimeout}
		err := check.probe(ctx, network, address, func(ctx context.Context) error { return voucher.Vouch(ctx, id) })
		l.mu.Lock()
		switch {
		case ctx.Err() != nil:
		case err == nil:
			i.stopProbe()
			slots.Vouch()
			l.log().Debug("the instance is still at its address", zap.String("instance", id), zap.String("address", address))
		default:
			i.stopProbe()
			i.lastProbe = err
			l.log().Debug("nobody vouches for the instance", zap.String("instance", id), zap.String("address", address), zap.Error(err))
			slots.Eject()
		}
		l.mu.Unlock()
		l.Poke()
	})
}
