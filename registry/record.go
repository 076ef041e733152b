package registry

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// Origin is where a service comes from.
type Origin int

const (
	// RunTime: the service was made by the API. It is in the store.
	RunTime Origin = iota
	// Discovered: an object of a platform says by its labels that it is a service. It
	// is never stored.
	Discovered
)

// String returns the word for people and for JSON.
func (o Origin) String() string {
	if o == Discovered {
		return "discovered"
	}
	return "run time"
}

// Revision is one definition that a service has or had.
type Revision struct {
	Number     int        `json:"number"` // from 1; never used again
	Definition Definition `json:"definition"`
	By         string     `json:"by,omitempty"` // who made it, for people
	At         time.Time  `json:"at"`

	// Why it failed as a new revision, so that one before it is in force; nil if it did
	// not, or is tried again.
	Failed *Failed `json:"failed,omitempty"`
}

// Failed is why a revision failed.
type Failed struct {
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

// FellBack says which revision has failed, so that one before it is in force.
type FellBack struct {
	Revision int
	Reason   string
	At       time.Time
}

// Record is all that is known of a service. A Record that a Registry has returned does
// not change, and is not to be changed; a new one takes its place.
type Record struct {
	Name  string
	Owner string // whose service it is; empty: only operators change it

	// Oldest first. There is at least one. InForce says which one is in force.
	Revisions []Revision

	// Set while the current revision has failed and one before it is in force.
	FellBack *FellBack

	// When it was deleted, and by whom; zero if it was not. It can be brought back for
	// DeletedKept, but is not in force, and claims neither hosts nor a place in a limit.
	Deleted   time.Time
	DeletedBy string

	// The last known use, coarse; zero: none is known.
	Used time.Time

	// When anything of the record changed last. It grows with each change, also if a
	// clock goes back: of two records of a service the one that changed later is right.
	Changed time.Time

	Origin Origin
	Source string // of a discovered one: "kubernetes: deployment/web in namespace apps"

	etag, state string
}

// Current returns the revision that was made last.
func (r *Record) Current() *Revision { return &r.Revisions[len(r.Revisions)-1] }

// InForce returns the newest revision that has not failed.
func (r *Record) InForce() *Revision {
	for i := len(r.Revisions) - 1; i >= 0; i-- {
		if r.Revisions[i].Failed == nil {
			return &r.Revisions[i]
		}
	}
	return r.Current()
}

// hosts returns the hosts that the service claims. If its newest revision has failed,
// these are that one's, which may be tried again, and those of the one in force.
func (r *Record) hosts() []string {
	hosts := r.Current().Definition.Hosts
	if r.FellBack == nil {
		return hosts
	}
	hosts = slices.Concat(hosts, r.InForce().Definition.Hosts)
	slices.Sort(hosts)
	return slices.Compact(hosts)
}

// Revision returns the revision with that number, or nil if it is not kept.
func (r *Record) Revision(number int) *Revision {
	for i := range r.Revisions {
		if r.Revisions[i].Number == number {
			return &r.Revisions[i]
		}
	}
	return nil
}

// ETag returns the strong entity tag of the current revision, quoted. It is the number
// of the revision and a hash of the definition's canonical form.
func (r *Record) ETag() string { return r.etag }

// State identifies all that a record says, its last use left out.
func (r *Record) State() string { return r.state }

// IsDeleted says whether the service is deleted and can be brought back.
func (r *Record) IsDeleted() bool { return !r.Deleted.IsZero() }

// sealed sets what is derived, and returns r. From then on r does not change.
func (r *Record) sealed() *Record {
	c := r.Current()
	sum := sha256.Sum256(c.Definition.canonical())
	r.etag = `"` + strconv.Itoa(c.Number) + "-" + hex.EncodeToString(sum[:12]) + `"`
	r.FellBack = nil
	if c.Failed != nil && r.InForce() != c {
		r.FellBack = &FellBack{Revision: c.Number, Reason: c.Failed.Reason, At: c.Failed.At}
	}
	state := *r
	state.Used, state.Changed = time.Time{}, time.Time{}
	sum = sha256.Sum256(EncodeRecord(&state))
	r.state = hex.EncodeToString(sum[:12])
	return r
}

// changedAt returns a copy that is changed now, to be changed by the caller.
func (r *Record) changedAt(now time.Time) *Record {
	next := *r
	next.Revisions = slices.Clone(r.Revisions)
	next.Changed = laterThan(r.Changed, now)
	return &next
}

func laterThan(before, now time.Time) time.Time {
	if now = instant(now); now.After(before) {
		return now
	}
	return before.Add(time.Millisecond)
}

// failed returns a record whose current revision has failed.
func (r *Record) failed(reason string, now time.Time) *Record {
	next := r.changedAt(now)
	next.Current().Failed = &Failed{Reason: reason, At: instant(now)}
	return next.sealed()
}

// tryAgain returns a record whose current revision has not failed.
func (r *Record) tryAgain(now time.Time) *Record {
	next := r.changedAt(now)
	next.Current().Failed = nil
	return next.sealed()
}

// nextRecord returns the record with one more revision, of which keep are kept. old may
// be nil, or deleted.
func nextRecord(old *Record, name, owner string, rev Revision, keep int) *Record {
	if old == nil {
		rev.Number = 1
		return (&Record{Name: name, Owner: owner, Revisions: []Revision{rev}, Changed: rev.At}).sealed()
	}
	next := old.changedAt(rev.At)
	next.Owner = owner
	next.Deleted, next.DeletedBy = time.Time{}, ""
	// The revision that serves until the new one is ready is kept in any case.
	serving := old.InForce().Number
	first := max(0, len(next.Revisions)-max(keep-1, 0))
	next.Revisions = slices.DeleteFunc(next.Revisions, func(r Revision) bool {
		return r.Number < oldestKept(old, first) && r.Number != serving
	})
	rev.Number = old.Current().Number + 1
	next.Revisions = append(next.Revisions, rev)
	return next.sealed()
}

// oldestKept returns the number of the revision at index first, or one beyond all.
func oldestKept(r *Record, first int) int {
	if first < len(r.Revisions) {
		return r.Revisions[first].Number
	}
	return r.Current().Number + 1
}

// Newer says whether r is a later state of its service than other, which may be nil.
func (r *Record) Newer(other *Record) bool {
	if other == nil || !r.Changed.Equal(other.Changed) {
		return other == nil || r.Changed.After(other.Changed)
	}
	return bytes.Compare(EncodeRecord(r), EncodeRecord(other)) > 0
}

// recordVersion is the version of the form in which records are stored.
const recordVersion = 1

// storedRecord is the form of a record in the store.
type storedRecord struct {
	Version   int        `json:"version"`
	Name      string     `json:"name"`
	Owner     string     `json:"owner,omitempty"`
	Revisions []Revision `json:"revisions"`
	Deleted   time.Time  `json:"deleted,omitzero"`
	DeletedBy string     `json:"deleted_by,omitempty"`
	Used      time.Time  `json:"used,omitzero"`
	Changed   time.Time  `json:"changed"`
}

// EncodeRecord returns the form in which a record is stored, and told to other Caddys.
// Secrets of whole definitions are in it. r is not a discovered one.
func EncodeRecord(r *Record) []byte {
	return render(storedRecord{recordVersion, r.Name, r.Owner, r.Revisions, r.Deleted, r.DeletedBy, r.Used, r.Changed})
}

// DecodeRecord reads what EncodeRecord has written. Definitions go through the same
// checks as a body: what stands in a store may have been changed.
func DecodeRecord(data []byte) (*Record, error) {
	var s struct {
		storedRecord
		Revisions []struct {
			Revision
			Definition json.RawMessage `json:"definition"`
		} `json:"revisions"`
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, err
	}
	if s.Version > recordVersion {
		return nil, fmt.Errorf("it was written by a newer Usher (version %d, this one knows %d): run that one", s.Version, recordVersion)
	}
	if err := CheckName(s.Name); err != nil {
		return nil, err
	}
	if len(s.Revisions) == 0 {
		return nil, errors.New("it has no revisions")
	}
	r := &Record{Name: s.Name, Owner: s.Owner, Deleted: s.Deleted, DeletedBy: s.DeletedBy, Used: s.Used, Changed: s.Changed}
	for i, stored := range s.Revisions {
		rev := stored.Revision
		var err error
		if rev.Definition, err = ParseDefinition(stored.Definition); err != nil {
			return nil, fmt.Errorf("revision %d: %w", rev.Number, err)
		}
		if rev.Number < 1 || i > 0 && rev.Number <= r.Revisions[i-1].Number {
			return nil, errors.New("the numbers of its revisions are not in order")
		}
		r.Revisions = append(r.Revisions, rev)
	}
	return r.sealed(), nil
}
