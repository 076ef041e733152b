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

// place does what the leader says. What is on an instance that is not known here
// yet is kept until it is.
func (m *membership) place(s *Service, all []reserver.Placement) {
	var early []reserver.Placement
	for _, p := range all {
		if !s.Reserver.Place(p) {
			early = append(early, p)
		}
	}
	if len(early) == 0 {
		return
	}
	m.of(s.Name, func(k *sharedService) {
		if len(k.early)+len(early) <= reserver.SessionsMost {
			k.early = append(k.early, early...)
		}
	})
}

// fetchPlaced asks the leader for all keys of s. What this Caddy has placed
// meanwhile is told to the leader in any case.
func (m *membership) fetchPlaced(s *Service) {
	s.Current() // a configuration that is being loaded says whether there are keys
	if m.leading() || !s.Sessions.Load().Remembers() {
		return
	}
	ctx, cancel := context.WithTimeout(m.hub.ctx, questionTimeout)
	defer cancel()
	r, err := m.askLeader(ctx, question{Service: s.Name, Do: askPlaced})
	if err != nil {
		m.log().Info("the keys of sessions that the other Caddys know are not known here: sessions may go to another instance", zap.String("service", s.Name), zap.Error(err))
		return
	}
	m.place(s, decodePlaced(r.Placed))
}
