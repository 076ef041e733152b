package reserver

import "time"

// Class is the priority of a waiter. Waiters of a higher class have their turns
// before all of a lower one.
type Class int8

// The classes.
const (
	Low    Class = -1
	Normal Class = 0
	High   Class = 1
)

// Affinity says how a request finds the instance of its session.
type Affinity uint8

// The kinds of affinity.
const (
	// NoAffinity: the request goes to any instance.
	NoAffinity Affinity = iota
	// ByInstance: the request goes to Ask.Instance, or else to the instance whose
	// Hash is Ask.Key. With neither it starts a session on any instance.
	ByInstance
	// ByKey: equal keys go to the same instance as long as that serves. The
	// first request of a key goes to any instance with a free slot, by
	// rendezvous hashing.
	ByKey
	// ByHash: a key goes to the first instance, in the key's order of all
	// instances, that has a free slot. Nothing is remembered.
	ByHash
)

// Ask is what a waiter asks for.
type Ask struct {
	// Quiet waiters are served while an instance takes requests, but are no
	// reason to have one.
	Quiet bool

	// Class is the priority. A waiter rises by one class each time it has
	// waited for RiseAfter, so that low classes are served too; with 0 it never
	// rises.
	Class     Class
	RiseAfter time.Duration

	// Share is the fair share to which the request counts: shares of one class
	// have their turns one after the other. Requests with 0 are one share, too.
	// ShareLimit is the most requests of the share that may wait; 0 is no limit
	// beside that of the queue.
	Share      uint64
	ShareLimit int

	// Affinity is how the request finds the instance of its session, with
	// Instance or Key. An instance that does not serve counts as none.
	Affinity Affinity
	Instance *Instance
	Key      uint64
}

// plain reports whether the order of arrival is all that matters to the waiter.
func (a *Ask) plain() bool {
	return a.Class == Normal && a.Share == 0 && a.Affinity == NoAffinity
}

// Session says what a slot means for the session that asked for it.
type Session uint8

// The kinds of Session.
const (
	// NoSession: the request belongs to none.
	NoSession Session = iota
	// SessionNew: the request is the first of its session, as far as is known.
	SessionNew
	// SessionKept: the slot is on the instance of the session.
	SessionKept
	// SessionMoved: the instance of the session serves no more, and the slot is
	// on another one, where the session goes on. With ByHash: the first instance
	// in the key's order was full.
	SessionMoved
)

// String returns the word for s that users see, or "" for NoSession.
func (s Session) String() string {
	switch s {
	case SessionNew:
		return "new"
	case SessionKept:
		return "kept"
	case SessionMoved:
		return "moved"
	}
	return ""
}
