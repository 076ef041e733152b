package chaos

import (
	"cmp"
	"net/http"
	"slices"
	"time"
)

// settling is how long a grant may be on its way to the journal of the
// instance: so long limits that were lowered are still allowed for.
const settling = 2 * time.Second

// checkSlots checks that no instance had more requests inside than slots
// (G1). A request counts until its handler has returned, or its client had
// its outcome: what the instance has not noticed yet is not in its slot any
// more.
func (b *books) checkSlots() {
	for instance, seqs := range b.inside {
		var now []stay // those that may be inside, with the end that counts
		for _, seq := range seqs {
			r := b.bySeq[seq]
			if r == nil {
				continue // asked for by the test itself, before or after the run
			}
			if r.left && r.over.Before(b.stays[seq][0].from) {
				continue // it was written before its client left, and read after
			}
			k := slices.IndexFunc(b.stays[seq], func(s stay) bool { return s.instance == instance })
			s := b.stays[seq][k]
			now = slices.DeleteFunc(now, func(o stay) bool { return o.to.Before(s.from) })
			if s.to.IsZero() || r.over.Before(s.to) {
				s.to = r.over
			}
			now = append(now, s)
			from := s.from.Add(-settling)
			if r.began.After(from) {
				from = r.began
			}
			if slots := b.town.slots(r.service, from, s.from); len(now) > slots {
				b.finding(r, "instance %s had %d requests inside at %s, and %d slots", instance, len(now), s.from.Format(clock), slots)
			}
		}
	}
}

// checkOnce checks that nothing was executed twice unless that is allowed
// (G9).
func (b *books) checkOnce() {
	for seq, stays := range b.stays {
		r := b.bySeq[seq]
		if r == nil {
			continue
		}
		instances := make(map[string]bool)
		for _, s := range stays {
			instances[s.instance] = true
		}
		switch {
		case r.method == http.MethodPost && len(stays) > 1:
			b.finding(r, "a POST was executed %d times", len(stays))
		case r.service != "retry" && len(instances) > 1:
			b.finding(r, "a request that no rule allows to repeat was seen by %d instances", len(instances))
		case len(instances) > 4:
			b.finding(r, "with 3 retries a request was seen by %d instances", len(instances))
		}
	}
}

// apart is how far apart two arrivals, and two grants, have to be for their
// order to be certain: what the log tells are times of before and after.
const apart = 250 * time.Millisecond

// checkOrder checks that requests were served in order of arrival (G2), as far
// as the access log tells, and returns how many pairs it could compare. Requests that
// may have been tried again go before others, and do not count.
func (b *books) checkOrder() (pairs int) {
	byService := make(map[string][]*logged)
	for seq, all := range b.access {
		r := b.bySeq[seq]
		if r == nil || len(all) != 1 || r.quiet || all[0].Usher.Instance == "" || all[0].Usher.Error != "" {
			continue
		}
		if touched(b.events.troubled[r.service], r.began, r.over) || touched(b.events.caddy, r.began, r.over) || touched(b.events.shortage, r.began, r.over) {
			continue
		}
		if !r.fine() || len(b.stays[seq]) != 1 {
			continue // of one that broke off the log has no duration
		}
		byService[r.service] = append(byService[r.service], all[0])
	}
	for _, all := range byService {
		slices.SortFunc(all, func(x, y *logged) int { return x.arrival().Compare(y.arrival()) })
		// The latest grant of those that came before, as soon as they are
		// far enough away.
		for k, first := range all {
			if first.Usher.WaitMS < apart.Milliseconds() {
				continue
			}
			for _, second := range all[k+1:] {
				if second.arrival().After(first.granted()) {
					break
				}
				if second.arrival().Sub(first.arrival()) < apart {
					continue
				}
				pairs++
				if first.granted().Sub(second.granted()) > apart {
					b.finding(b.bySeq[first.Request.Headers["X-Seq"][0]], "a request that came %s later was served %s earlier:\n    %s",
						second.arrival().Sub(first.arrival()).Round(time.Millisecond), first.granted().Sub(second.granted()).Round(time.Millisecond), second.line)
				}
			}
		}
	}
	return pairs
}

// sortRecords puts the records in the order in which they began.
func (b *books) sortRecords() {
	slices.SortFunc(b.records, func(x, y *record) int { return cmp.Or(x.began.Compare(y.began), cmp.Compare(x.seq, y.seq)) })
}
