package chaos

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// slack is how much later than in Caddy something may be seen by a client, or
// noted by the test, on a busy machine.
const slack = 2 * time.Second

// judgeOutcomes holds every record against what the contract allows for what
// was done.
func (b *books) judgeOutcomes() {
	for _, r := range b.records {
		switch {
		case r.over.IsZero():
			b.finding(r, "a request has no outcome")
			continue
		case r.over.Sub(r.began) > patience-time.Second:
			b.finding(r, "a request was not answered in %s", patience)
			continue
		case r.wrong != "":
			b.finding(r, "the answer is not the right one")
		case r.code != "":
			b.judgeRefusal(r)
		case r.left:
		case r.fine():
			b.judgeServed(r)
		case r.status == http.StatusNotFound:
			if !b.removed(r) {
				b.finding(r, "a service that is configured was not found")
			}
		case r.status == http.StatusServiceUnavailable:
			b.finding(r, "a 503 that is not Usher's own")
		case r.status == 0:
			b.judgeNoAnswer(r)
		default:
			if why := b.brokenBecause(r); why == "" {
				b.finding(r, "status %d, error %v: nothing was done that explains it", r.status, r.err)
			}
		}
		b.judgeLog(r)
	}
}

// judgeServed checks a request that was served, as far as the client can tell.
func (b *books) judgeServed(r *record) {
	stays := b.stays[r.seq]
	if len(stays) == 0 || stays[len(stays)-1].instance != r.instance {
		b.finding(r, "an answer came that by the journal no instance, or another one, has given")
	}
	for _, s := range b.events.suspended[r.service] {
		if s.covers(r.began.Add(-slack), r.over) {
			b.finding(r, "a suspended service has served")
		}
	}
}

// judgeRefusal checks an error of Usher's own.
func (b *books) judgeRefusal(r *record) {
	if stays := b.stays[r.seq]; len(stays) > 0 {
		b.finding(r, "an instance has seen a request that was refused with %s", r.code)
	}
	if r.status != http.StatusServiceUnavailable || r.store != "no-store" {
		b.finding(r, "%s with status %d, Cache-Control %q", r.code, r.status, r.store)
	}
	if n, err := strconv.Atoi(r.retry); err != nil || n < 1 {
		b.finding(r, "%s with Retry-After %q", r.code, r.retry)
	}
	if !r.left && r.err == nil && !strings.Contains(r.body, `"code":"`+r.code+`"`) {
		b.finding(r, "%s, and the body does not say so", r.code)
	}
	if r.left {
		return // when it was answered is not known
	}
	took := r.over.Sub(r.began)
	during := b.town.during(r.service, r.began, r.over)
	allowed := false
	switch r.code {
	case "queue_full":
		least := leastWaiting(during)
		others := 0
		for _, o := range b.records {
			if o != r && o.service == r.service && o.overlaps(r.began.Add(-slack), r.over) {
				others++
			}
		}
		allowed = others >= least
	case "wait_timeout":
		allowed = took >= waitTimeout-10*time.Millisecond && took < waitTimeout+longest+slack
	case "start_failed":
		// Or it was held to the end, and no start became ready.
		allowed = b.startsMayFail(r) || took >= waitTimeout-10*time.Millisecond && took < waitTimeout+longest+slack
	case "asleep":
		allowed = r.quiet
	case "suspended":
		allowed = touched(b.events.suspending[r.service], r.began, r.over)
	case "shutting_down":
		// Either Caddy exits, or a configuration that had the service as a
		// new one was taken back.
		allowed = touched(b.events.caddy, r.began, r.over) || b.removed(r)
	}
	if !allowed {
		b.finding(r, "%s: nothing was done that explains it", r.code)
	}
}

// startsMayFail tells whether something made starts of the service fail in
// the time to which the longest pause between two tries reaches back.
func (b *books) startsMayFail(r *record) bool {
	for _, at := range b.events.badStarts[r.service] {
		if at.Before(r.over) && at.After(r.began.Add(-90*time.Second)) {
			return true
		}
	}
	return touched(b.events.shortage, r.began.Add(-90*time.Second), r.over)
}

// removed tells whether the service was out of the configuration meanwhile.
func (b *books) removed(r *record) bool {
	for _, s := range b.town.during(r.service, r.began, r.over) {
		if s.removed {
			return true
		}
	}
	return false
}

// judgeNoAnswer checks a request whose connection ended before a byte of an
// answer.
func (b *books) judgeNoAnswer(r *record) {
	if touched(b.events.caddy, r.began, r.over.Add(slack)) || touched(b.events.shortage, r.began, r.over) {
		return
	}
	if len(b.stays[r.seq]) == 0 && len(b.access[r.seq]) == 0 && touched(b.events.reloading, r.began, r.over) {
		// When a listener is replaced, the kernel drops connections that have
		// not been accepted. Caddy has not seen it.
		return
	}
	if b.brokenBecause(r) == "" {
		b.finding(r, "no answer, error %v: nothing was done that explains it", r.err)
	}
}

// brokenBecause says what broke the answer to a request, or made the proxy
// answer with an error of its own; "" if nothing did.
func (b *books) brokenBecause(r *record) string {
	if touched(b.events.caddy, r.began, r.over.Add(slack)) {
		return "Caddy ended"
	}
	if touched(b.events.shortage, r.began, r.over.Add(slack)) {
		return "Caddy had no file descriptors"
	}
	instances := []string{r.instance}
	for _, s := range b.stays[r.seq] {
		instances = append(instances, s.instance)
	}
	for _, l := range b.access[r.seq] {
		instances = append(instances, l.Usher.Instance)
	}
	for _, i := range instances {
		if at, ok := b.events.killed[i]; ok && i != "" && at.After(r.began.Add(-slack)) && at.Before(r.over) {
			return "instance " + i + " was killed"
		}
		if at, ok := b.events.deafened[i]; ok && i != "" && at.After(r.began.Add(-slack)) && at.Before(r.over) {
			// What it had not accepted yet was reset with its listener, and
			// by then something could have been written.
			return "instance " + i + " closed its listener"
		}
	}
	return ""
}

// judgeLog holds a record against the access log: one entry for what Caddy
// has answered, and the same status.
func (b *books) judgeLog(r *record) {
	all := b.access[r.seq]
	if touched(b.events.caddy, r.began, r.over.Add(slack)) {
		return // what was to be written when Caddy was killed is lost
	}
	switch {
	case len(all) > 1:
		b.finding(r, "the access log has a request %d times", len(all))
	case len(all) == 0 && r.status != 0 && !r.left:
		b.finding(r, "the access log lacks a request that was answered")
	case len(all) == 1 && !r.left && r.status != 0 && all[0].Status != r.status:
		b.finding(r, "the access log says status %d, the client got %d", all[0].Status, r.status)
	}
}
