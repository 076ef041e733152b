package control

import (
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// Account is what a loop that leads tells those that follow of how its service is
// doing. It can be encoded as JSON, without what is zero: a Caddy that comes gets those
// of all services at once.
type Account struct {
	// Status is without what changes all the time: Needed, IdleTime, Avoidable and
	// what is needed in the Outlook. Its failures have their errors in words.
	Status Status `json:",omitzero"`

	// ColdSince is when the cold start in progress began, StartUsual how long one
	// usually takes, and Unstartable why requests that have waited in vain got no
	// instance. Each is zero if there is none.
	ColdSince   time.Time       `json:",omitzero"`
	StartUsual  time.Duration   `json:",omitzero"`
	Unstartable *scaler.Failure `json:",omitzero"`
}

// Account says how the service is doing, for loops that follow.
func (l *Loop) Account() Account {
	st := l.Status()
	st.Needed, st.IdleTime, st.Avoidable = 0, 0, 0
	st.Outlook.Needed, st.Outlook.NeededPeak, st.Outlook.NeededSince = 0, 0, time.Time{}
	for _, f := range []**scaler.Failure{&st.LastError, &st.Trouble, &st.Start.Failure, &st.Start.Known, &st.Start.Problem} {
		*f = (*f).InWords()
	}
	a := Account{Status: st, Unstartable: l.StartTrouble().InWords()}
	a.ColdSince, a.StartUsual = l.ColdStart()
	return a
}

// FollowAccount says how the service is doing, in the words of the loop that leads.
func (l *Loop) FollowAccount(a *Account) {
	l.mu.Lock()
	if l.sharing != nil {
		l.sharing.account = a
	}
	l.mu.Unlock()
	l.Trigger()
}

// account is what the loop that leads has told, if this one follows; else nil. The
// lock is held.
func (l *Loop) account() *Account {
	if !l.follows() {
		return nil
	}
	return l.sharing.account
}

// followedStatus is the status in the words of the loop that leads. Whether the
// service is suspended, and whether there is an instance, is known here, too. The
// lock is held.
func (l *Loop) followedStatus(a *Account) Status {
	st := a.Status
	st.State = l.stateNow()
	st.Needed = instancesFor(l.stats().Demand, l.slotsEach())
	return st
}

// FollowEvent takes note of a decision, or a cold start, of the loop that leads.
// The observer is told nothing.
func (l *Loop) FollowEvent(event Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.follows() {
		return
	}
	past := l.record()
	switch event := event.(type) {
	case Decision:
		past.decided(event)
	case ColdStart:
		for k := len(past.decisions) - 1; k >= 0; k-- {
			if d := &past.decisions[k]; d.From == 0 && d.ColdStart == nil {
				d.ColdStart = &event
				return
			}
		}
	}
}
