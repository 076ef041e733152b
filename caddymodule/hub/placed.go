package hub

import (
	"context"
	"encoding/binary"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-usher/usher/reserver"
)

// The Caddys of a cluster remember together on which instance the session of a key
// is. Each tells the leader of the keys that are new to it. The leader takes the
// word that it hears first, and tells all what holds, so they agree a moment
// later, even if two have placed one key at the same time. A Caddy that comes, or
// comes back, asks the leader for all.

// newsPlaced, before the name of a service, is the subject of news about keys.
const newsPlaced = "placed/"

// placedPause is how long placements are collected before they are told.
const placedPause = 10 * time.Millisecond

// placementSize is how many bytes a placement has on its way: the key, the
// instance and whether it was learned.
const placementSize = 8 + 8 + 1

// placedAtOnce is how many placements go into one piece of news.
const placedAtOnce = 10_000

func encodePlaced(all []reserver.Placement) []byte {
	b := make([]byte, 0, len(all)*placementSize)
	for _, p := range all {
		b = binary.BigEndian.AppendUint64(b, p.Key)
		b = binary.BigEndian.AppendUint64(b, p.Instance)
		learned := byte(0)
		if p.Learned {
			learned = 1
		}
		b = append(b, learned)
	}
	return b
}

// decodePlaced leaves out what is not whole.
func decodePlaced(b []byte) (all []reserver.Placement) {
	for ; len(b) >= placementSize; b = b[placementSize:] {
		all = append(all, reserver.Placement{
			Key: binary.BigEndian.Uint64(b), Instance: binary.BigEndian.Uint64(b[8:]), Learned: b[16] != 0,
		})
	}
	return all
}

// tellPlaced tells the leader, or all if this Caddy leads, of the keys of s that
// are new.
func (m *membership) tellPlaced(s *Service) { m.sendPlaced(s.Name, s.Reserver.TakePlaced()) }

func (m *membership) sendPlaced(name string, all []reserver.Placement) {
	for len(all) > 0 {
		n := min(len(all), placedAtOnce)
		m.driver.Tell(newsPlaced+name, encodePlaced(all[:n]))
		all = all[n:]
	}
}

// hearPlaced takes what another Caddy says of keys. The leader decides.
func (m *membership) hearPlaced(name string, body []byte) {
	_, s := m.of(name, nil)
	all := decodePlaced(body)
	switch {
	case s == nil:
	case !m.leading():
		m.place(s, all)
	default:
		holds := all[:0]
		for _, p := range all {
			if p, ok := s.Reserver.PlaceUnlessKept(p); ok {
				holds = append(holds, p)
			}
		}
		m.sendPlaced(name, holds)
	}
}

// earlyPlacement is one on an instance that is not known here yet.
type earlyPlacement struct {
	reserver.Placement
	lists int // that have come since, without the instance
}

// earlyLists is how many lists of instances a placement waits for. The list with
// its instance was sent before it or directly after, so one that is still not there
// has ended.
const earlyLists = 2

// place does what the leader says. What is on an instance that is not known here
// yet is kept until it is, unless the leader says something else meanwhile.
func (m *membership) place(s *Service, all []reserver.Placement) {
	unknown := make([]bool, len(all))
	for k, p := range all {
		unknown[k] = !s.Reserver.Place(p)
	}
	m.of(s.Name, func(k *sharedService) {
		for j, p := range all {
			if !unknown[j] {
				delete(k.early, p.Key)
			} else {
				k.keepEarly(earlyPlacement{Placement: p})
			}
		}
	})
}

// keepEarly keeps a placement in place of an earlier one of its key. The lock of the
// membership is held.
func (k *sharedService) keepEarly(p earlyPlacement) {
	if k.early == nil {
		k.early = make(map[uint64]earlyPlacement)
	}
	if _, ok := k.early[p.Key]; ok || len(k.early) < reserver.SessionsMost {
		k.early[p.Key] = p
	}
}

// placeEarly places what was kept, after a new list of instances.
func (m *membership) placeEarly(s *Service, all map[uint64]earlyPlacement) {
	for key, p := range all {
		if p.lists++; s.Reserver.Place(p.Placement) || p.lists == earlyLists {
			delete(all, key)
		} else {
			all[key] = p
		}
	}
	if len(all) == 0 {
		return
	}
	m.of(s.Name, func(k *sharedService) {
		for key, p := range all {
			if _, later := k.early[key]; !later {
				k.keepEarly(p)
			}
		}
	})
}

// fetchTimeout bounds how long the leader is asked for the keys of all services.
const fetchTimeout = 30 * time.Second

// fetchAllPlaced asks the leader for the keys of services, one after the other: each
// question is a connection, of which the leader takes only so many at a time.
func (m *membership) fetchAllPlaced(all []*Service) {
	ctx, cancel := context.WithTimeout(m.hub.ctx, fetchTimeout)
	defer cancel()
	for _, s := range all {
		m.fetchPlaced(ctx, s)
	}
}

// fetchPlaced asks the leader for all keys of s. What this Caddy has placed
// meanwhile is told to the leader in any case.
func (m *membership) fetchPlaced(ctx context.Context, s *Service) {
	s.Current() // a configuration that is being loaded says whether there are keys
	if m.leading() || !s.Sessions.Load().Remembers() {
		return
	}
	r, err := m.askLeader(ctx, question{Service: s.Name, Do: askPlaced})
	if err != nil {
		m.log().Info("the keys of sessions that the other Caddys know are not known here: sessions may go to another instance", zap.String("service", s.Name), zap.Error(err))
		return
	}
	m.hearPlaced(s.Name, r.Placed)
}
