package control

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddy-usher/usher/reserver"
	"github.com/caddy-usher/usher/scaler"
)

// Some services run together. A service that needs others wakes them, starts
// once they serve, and keeps them awake as long as it has instances. Services of
// a group are awake while one of them is.
//
// A service that waits for its needs holds no place of the start budget, and no
// lock of one loop is held while that of another is taken: loops tell each other
// what they want by small records of their own, and by Trigger.

// A Need is a service without which another one does not start.
type Need struct {
	Loop *Loop

	// Started is true if it is enough that an instance of it exists. Otherwise
	// one has to be ready.
	Started bool
}

// standing is what a loop shows of itself to those that need it.
type standing struct {
	open, exists bool
	refusal      *Refusal
}

// keepers are the loops that need this one, and what they know of it.
type keepers struct {
	sync.Mutex
	all   []*Loop
	shown standing
	fresh bool // shown was said since the first one came
	woken bool // one came since takeWoken, or a member of the group woke up
}

// keep lets by keep l awake, or no more.
func (l *Loop) keep(by *Loop, on bool) {
	k := &l.keptBy
	k.Lock()
	at := slices.Index(k.all, by)
	if on == (at >= 0) {
		k.Unlock()
		return
	}
	if on {
		k.fresh = k.fresh && len(k.all) > 0
		k.all, k.woken = append(k.all, by), true
	} else {
		k.all = slices.Delete(k.all, at, at+1)
	}
	k.Unlock()
	l.Trigger()
}

// wokenByOthers makes l decide anew. It wakes l even if an operator has put it to
// sleep.
func (l *Loop) wokenByOthers() {
	l.keptBy.Lock()
	l.keptBy.woken = true
	l.keptBy.Unlock()
	l.Trigger()
}

// takeWoken reports whether a service that needs l, or one of its group, has
// woken it since the last call.
func (l *Loop) takeWoken() bool {
	l.keptBy.Lock()
	defer l.keptBy.Unlock()
	woken := l.keptBy.woken
	l.keptBy.woken = false
	return woken
}

// standing returns what l has shown last. It is false if l has yet to look.
func (l *Loop) standing() (standing, bool) {
	l.keptBy.Lock()
	defer l.keptBy.Unlock()
	return l.keptBy.shown, l.keptBy.fresh
}

// keepersNamed returns the names of the services that keep l awake, sorted; nil
// if none does.
func (l *Loop) keepersNamed() []string {
	l.keptBy.Lock()
	defer l.keptBy.Unlock()
	var names []string
	for _, by := range l.keptBy.all {
		names = append(names, by.env.Service)
	}
	slices.Sort(names)
	return names
}

// keepersNames is the same as one text; empty if none does.
func (l *Loop) keepersNames() string { return strings.Join(l.keepersNamed(), ", ") }

// show tells the loops that need l how it stands. The lock of l is held.
func (l *Loop) show() {
	k := &l.keptBy
	k.Lock()
	defer k.Unlock()
	if len(k.all) == 0 {
		return
	}
	now := standing{open: l.reserver.Stats().Open > 0, refusal: l.refusal}
	for _, r := range l.revisions {
		now.exists = now.exists || r.existing() > 0
	}
	if k.fresh && now == k.shown {
		return
	}
	k.shown, k.fresh = now, true
	for _, by := range k.all {
		by.Trigger()
	}
}

// holdNeeds keeps the needs of l awake while it wants or has instances. The lock
// is held.
func (l *Loop) holdNeeds(now time.Time, next *recheck) {
	if len(l.held) == 0 && len(l.settings.Needs) == 0 {
		l.unmet, l.waitsFor = nil, ""
		return
	}
	wants := l.target > 0 && l.exiting == nil && !l.closing()
	for _, r := range l.revisions {
		wants = wants || len(r.instances) > 0
	}
	for _, n := range l.held {
		if !wants || !slices.ContainsFunc(l.settings.Needs, func(o Need) bool { return o.Loop == n }) {
			n.keep(l, false)
		}
	}
	l.held = nil
	if wants {
		for _, n := range l.settings.Needs {
			n.Loop.keep(l, true)
			l.held = append(l.held, n.Loop)
		}
	}
	if l.target == 0 {
		l.waitsFor = ""
	}
	if u := l.unmet; u != nil {
		// As after a failed start of its own: the next request after that tries
		// again.
		if now.Before(u.Until) {
			next.by(u.Until)
		} else {
			l.unmet = nil
		}
	}
}

// needsMet reports whether all that l needs serves. If one of them cannot be
// started, requests that wait for l get the reason. The lock is held.
func (l *Loop) needsMet(now time.Time, next *recheck) bool {
	if len(l.settings.Needs) == 0 {
		return true
	}
	l.holdNeeds(now, next)
	l.unmet, l.waitsFor = nil, ""
	for _, n := range l.settings.Needs {
		st, known := n.Loop.standing()
		switch name := n.Loop.env.Service; {
		case known && (st.open || n.Started && st.exists):
			continue
		case known && st.refusal != nil && l.unmet == nil:
			l.unmet = &Refusal{
				Kind: RefusedFailing, Short: "it needs " + name + ": " + st.refusal.Short,
				Detail: st.refusal.Detail, Until: st.refusal.Until,
			}
			if l.unmet.Until.IsZero() {
				l.unmet.Until = now.Add(needPause)
			}
			if st.refusal.Kind == RefusedSuspended {
				l.unmet.Short = "it needs " + name + ", which is suspended: " + st.refusal.Short
			}
			fallthrough
		default:
			l.waitsFor = name
		}
	}
	return l.waitsFor == ""
}

// needPause is after what time a service looks again at a need that cannot say
// when it may serve.
const needPause = time.Second

// leaveAll ends what l wants of others.
func (l *Loop) leaveAll() {
	for _, n := range l.held {
		n.keep(l, false)
	}
	l.held = nil
	if l.group != nil {
		l.group.leave(l)
		l.group = nil
	}
}

// A Group is a number of services that wake and sleep together. Its zero value is
// ready for use, and all methods are safe for concurrent use.
type Group struct {
	mu    sync.Mutex
	wants map[*Loop]bool // of the members
}

// want notes whether l wants to be awake by itself, and returns the name of
// another member that does, or "".
func (g *Group) want(l *Loop, wants bool) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.wants == nil {
		g.wants = make(map[*Loop]bool)
	}
	was := g.wants[l]
	g.wants[l] = wants
	for o := range g.wants {
		switch {
		case o == l || was == wants:
		case wants:
			o.wokenByOthers()
		default:
			o.Trigger()
		}
	}
	return g.beside(l)
}

// wantedBeside returns the name of a member beside l that wants to be awake by
// itself, or "".
func (g *Group) wantedBeside(l *Loop) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.beside(l)
}

// beside is the same. The lock is held.
func (g *Group) beside(l *Loop) string {
	other := ""
	for o, w := range g.wants {
		if name := o.env.Service; o != l && w && (other == "" || name < other) {
			other = name
		}
	}
	return other
}

func (g *Group) leave(l *Loop) {
	g.mu.Lock()
	defer g.mu.Unlock()
	was := g.wants[l]
	delete(g.wants, l)
	if was {
		for o := range g.wants {
			o.Trigger()
		}
	}
}

// company notes in the group what the policy wants, and returns the names of the
// services for which l is to be awake; empty if there is none. The lock is held.
func (l *Loop) company(a scaler.Advice) string {
	by := l.keepersNames()
	if l.group != nil && l.group != l.settings.Group {
		l.group.leave(l)
	}
	if l.group = l.settings.Group; l.group != nil {
		if other := l.group.want(l, a.Target > 0 || by != ""); by == "" {
			by = other
		}
	}
	return by
}

// companyNow is the same, and notes nothing.
func (l *Loop) companyNow() string {
	by := l.keepersNames()
	if by == "" && l.group != nil {
		by = l.group.wantedBeside(l)
	}
	return by
}

// inCompany returns the advice with the fewest instances that the services by
// and Settings.Awake ask for. The lock is held.
func (l *Loop) inCompany(a scaler.Advice, by string, stats reserver.Stats) scaler.Advice {
	if a.Target == 0 && by != "" {
		a.Target, a.Idle, a.Mark = min(1, l.settings.Max), false, stats.Demand
		a.Reason = "kept awake for " + by
	}
	if n := min(l.settings.Awake, l.settings.Max); a.Target > 0 && a.Target < n && !a.Idle {
		a.Target = n
		a.Reason = "as many as it has while it is awake"
	}
	return a
}

// inSession returns the advice for as long as requests of sessions may come: a
// policy may let a service sleep before the idle timeout, but the last instance
// of a session does not go before. The lock is held.
func (l *Loop) inSession(a scaler.Advice, in scaler.Inputs, next *recheck) scaler.Advice {
	asleepAt := in.IdleSince.Add(in.IdleTimeout)
	if a.Target > 0 || in.Demand > 0 || !in.Now.Before(asleepAt) || !l.goesOn() {
		return a
	}
	if _, _, until := bySession(l.current().withSlots()); !until.IsZero() {
		next.by(until)
		next.by(asleepAt)
		a.Target, a.Idle = 1, false
		a.Reason = "a session may go on: one stays until idle_timeout"
	}
	return a
}

// alone takes note that l is off, whatever others want. The lock is held.
func (l *Loop) alone() {
	if l.group != nil {
		l.group.want(l, false)
	}
}
