package driver

import (
	"maps"
	"time"

	"github.com/caddy-usher/usher/cluster"
)

// recalled is what slots are asked back of: a Caddy, a service and, if not any
// instance will do, an instance.
type recalled struct{ boot, service, instance string }

// owed is up to which count slots were asked back, and since when.
type owed struct {
	until uint64
	since time.Time
}

// asks takes note that slots are asked back. A lower count takes that back.
func (d *Driver) asks(boot string, r cluster.Recall) {
	k := recalled{boot, r.Service, r.Instance}
	switch o, ok := d.asked[k]; {
	case !ok || r.Until > o.until:
		d.asked[k] = owed{r.Until, time.Now()}
	case r.Until < o.until:
		delete(d.asked, k)
	}
}

// noteReturns takes note of what an event says of slots that were asked back.
func (d *Driver) noteReturns(e cluster.Event) {
	switch e := e.(type) {
	case cluster.StreamDown:
		d.asksNoMore(e.Boot)
	case cluster.Received:
		switch b := e.Message.Body.(type) {
		case cluster.Hello:
			d.asksNoMore(e.From) // the counts begin anew
		case cluster.Return:
			d.gotBack(e.From, b)
		}
	}
}

// asksNoMore forgets what was asked of a Caddy in a session that is over.
func (d *Driver) asksNoMore(boot string) {
	maps.DeleteFunc(d.asked, func(r recalled, _ owed) bool { return r.boot == boot })
}

// gotBack takes note that slots came back.
func (d *Driver) gotBack(boot string, b cluster.Return) {
	for _, s := range b.Slots {
		for _, id := range []string{"", s.Instance} {
			k := recalled{boot, s.Service, id}
			if o, ok := d.asked[k]; ok {
				delete(d.asked, k)
				d.c.Host.HandedOver(s.Service, time.Since(o.since))
			}
		}
	}
}
