package hub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"go.uber.org/zap"

	"github.com/caddy-usher/usher/cluster"
	"github.com/caddy-usher/usher/scaler/control"
)

// The notes on the board of a cluster. A note `suspended/<service>` has the
// suspension of a service, and is taken away by resume. A note
// `refused/<service>` says why the leader's loop lets no request wait. See also
// noteAccount and noteSplit.
const (
	noteSuspended = "suspended/"
	noteRefused   = "refused/"
)

// notesPrefix is where notes about suspensions and the weights of splits are kept in
// Caddy's storage, beside these themselves: a Caddy that comes back must not bring
// back what was taken away meanwhile.
const notesPrefix = "usher/cluster"

// noteKey is where the note with that key is kept.
func noteKey(key string) string { return path.Join(notesPrefix, key) }

// readNotes returns the notes that the storage has, and one for each of the
// suspensions and the weights of before there was a cluster. Those are older than any
// note. The hub's lock is not held.
func (h *Hub) readNotes(g *Generation, suspended map[*Service]*Suspension, weights map[string]*SplitWeights) (notes []cluster.Note) {
	if g.Cluster == nil || h.member.Load() != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), storageTimeout)
	defer cancel()
	var keys []string
	for _, kind := range []string{noteSuspended, noteSplit} {
		some, err := g.Storage.List(ctx, noteKey(kind), false)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			g.Logger.Error("the storage does not tell what the cluster knew of suspensions and weights; the other Caddys will", zap.Error(err))
		}
		keys = append(keys, some...)
	}
	known := make(map[string]bool)
	for _, key := range keys {
		var n cluster.Note
		b, err := g.Storage.Load(ctx, key)
		if err == nil {
			err = json.Unmarshal(b, &n)
		}
		if err != nil {
			g.Logger.Error("what the cluster knew cannot be read; the other Caddys will tell", zap.String("key", key), zap.Error(err))
			continue
		}
		known[n.Key] = true
		notes = append(notes, n)
	}
	for s, sus := range suspended {
		if key := noteSuspended + s.Name; !known[key] {
			if b, err := json.Marshal(sus); err == nil {
				notes = append(notes, cluster.Note{Key: key, Value: string(b)})
			}
		}
	}
	return append(notes, splitNotes(weights, known)...)
}

// suspensions returns the services of g that have never been in force and that
// the cluster says are suspended. The hub's lock is held.
func (m *membership) suspensions(g *Generation) map[*Service]*Suspension {
	found := make(map[*Service]*Suspension)
	for name, s := range g.Services {
		if n := m.driver.Note(noteSuspended + name); !s.active && !n.Gone {
			found[s] = suspensionOf(n)
		}
	}
	return found
}

func suspensionOf(n cluster.Note) *Suspension {
	sus := new(Suspension)
	if err := json.Unmarshal([]byte(n.Value), sus); err != nil {
		sus.Reason = "suspended by another Caddy of the cluster"
	}
	return sus
}

// tellSuspended tells the cluster that a service was suspended here, or resumed,
// if sus is nil. That it could not be stored is no reason to take it back. The
// operating lock is held.
func (m *membership) tellSuspended(ctx context.Context, name string, sus *Suspension) {
	var n cluster.Note
	if sus == nil {
		n = m.driver.Take(noteSuspended + name)
	} else {
		b, err := json.Marshal(sus)
		if err != nil {
			m.log().Error("the other Caddys are not told of a suspension", zap.String("service", name), zap.Error(err))
			return
		}
		n = m.driver.Put(noteSuspended+name, string(b))
	}
	m.keepNote(ctx, n)
}

// keepNote keeps a note in the storage.
func (m *membership) keepNote(ctx context.Context, n cluster.Note) {
	storage, err := m.hub.storage()
	if err == nil {
		var b []byte
		if b, err = json.Marshal(n); err == nil {
			err = storage.Store(ctx, noteKey(n.Key), b)
		}
	}
	if err != nil {
		m.log().Warn("what the cluster knows could not be stored: after a restart the other Caddys have to tell", zap.String("note", n.Key), zap.Error(err))
	}
}

// Noted implements driver.Host.
func (m *membership) Noted(n cluster.Note) {
	if name, ok := strings.CutPrefix(n.Key, noteSuspended); ok {
		m.hub.background.Go(func() { m.followSuspension(name) }) // the storage can take its time
	}
	if name, ok := strings.CutPrefix(n.Key, noteSplit); ok {
		m.hub.background.Go(func() { m.followSplit(name) })
	}
	if name, ok := strings.CutPrefix(n.Key, noteAccount); ok {
		if _, s := m.of(name, nil); s != nil {
			s.Loop.FollowAccount(accountOf(n)) // of one that leads, it makes it tell its own
		}
	}
	if name, ok := strings.CutPrefix(n.Key, noteRefused); ok {
		if _, s := m.of(name, nil); s != nil {
			s.Loop.FollowRefusal(refusalOf(n))
		}
	}
}

// followSuspension does here what the latest note about a service says.
func (m *membership) followSuspension(name string) {
	h := m.hub
	h.operating.Lock()
	defer h.operating.Unlock()
	n := m.driver.Note(noteSuspended + name)
	ctx, cancel := context.WithTimeout(h.ctx, storageTimeout)
	defer cancel()
	m.keepNote(ctx, n)
	var sus *Suspension
	var err error
	if n.Gone {
		err = h.forgetSuspension(ctx, name)
	} else {
		sus = suspensionOf(n)
		err = h.storeSuspension(ctx, name, sus)
	}
	if err != nil {
		m.log().Error("another Caddy has suspended or resumed a service, and that could not be stored here: it holds until this Caddy ends", zap.String("service", name), zap.Error(err))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.services[name]
	switch {
	case s == nil, sus == nil && s.suspension == nil, sus != nil && s.suspension != nil && *sus == *s.suspension:
		return
	case sus == nil:
		s.suspension, s.operated = nil, true
		s.Loop.Resume()
		h.resumeTasks(s.Name)
		s.Log().Info("service is resumed: another Caddy of the cluster was asked to")
	default:
		s.suspension, s.operated = sus, true
		s.Loop.Suspend(sus.Reason)
		s.Log().Info("service is suspended: another Caddy of the cluster was asked to", zap.String("reason", sus.Reason))
	}
}

// refused tells the cluster why the loop of a service that this Caddy leads lets no
// request wait; nil if it does. It is called under the loop's lock.
func (m *membership) refused(name string, r *control.Refusal) {
	if r == nil {
		if !m.driver.Note(noteRefused + name).Gone {
			m.driver.Take(noteRefused + name)
		}
		return
	}
	b, err := json.Marshal(r)
	if err != nil {
		return // a refusal has nothing that cannot be encoded
	}
	if m.driver.Note(noteRefused+name).Value != string(b) {
		m.driver.Put(noteRefused+name, string(b))
	}
}

// refusalOf returns the refusal of a note; nil if there is none.
func refusalOf(n cluster.Note) *control.Refusal {
	r := new(control.Refusal)
	if n.Gone || json.Unmarshal([]byte(n.Value), r) != nil {
		return nil
	}
	return r
}

// storeSuspension and forgetSuspension keep in the storage what holds after a
// restart.
func (h *Hub) storeSuspension(ctx context.Context, name string, sus *Suspension) error {
	storage, err := h.storage()
	if err != nil {
		return err
	}
	b, err := json.Marshal(sus)
	if err != nil {
		return err
	}
	if err := storage.Store(ctx, suspensionKey(name), b); err != nil {
		return fmt.Errorf("storing %s: %w", suspensionKey(name), err)
	}
	return nil
}

func (h *Hub) forgetSuspension(ctx context.Context, name string) error {
	storage, err := h.storage()
	if err != nil {
		return err
	}
	if err := storage.Delete(ctx, suspensionKey(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("deleting %s: %w", suspensionKey(name), err)
	}
	return nil
}
