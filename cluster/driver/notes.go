package driver

import (
	"encoding/json"
	"fmt"
	"log/slog"

	"github.com/caddy-usher/usher/cluster"
)

// Notes go over the same streams as messages, in frames of their own kind. When
// a stream begins, each side sends all that it has. What is news to a Caddy goes
// on to all others to which it has a stream: the leader has one to each.

// maxNotes is about how many bytes of notes go into one frame.
const maxNotes = maxPart / 4

// Put puts a note on the board of the cluster.
func (d *Driver) Put(key, value string) cluster.Note {
	return d.spread(func(b *cluster.Board) cluster.Note { return b.Put(key, value) })
}

// Take takes a note from the board of the cluster, and returns what is left of it.
func (d *Driver) Take(key string) cluster.Note {
	return d.spread(func(b *cluster.Board) cluster.Note { return b.Take(key) })
}

// Notes returns all notes, those that are gone too.
func (d *Driver) Notes() []cluster.Note {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.board.All()
}

// Note returns the note under a key. It is Gone if there is none.
func (d *Driver) Note(key string) cluster.Note {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.board.Get(key)
}

func (d *Driver) spread(change func(*cluster.Board) cluster.Note) cluster.Note {
	d.mu.Lock()
	n := change(d.board)
	to := d.allStreams("")
	d.mu.Unlock()
	d.sendNotes([]cluster.Note{n}, to)
	return n
}

// allStreams returns the streams to all Caddys but one. The lock is held.
func (d *Driver) allStreams(but string) (all []*stream) {
	for boot, s := range d.streams {
		if boot != but {
			all = append(all, s)
		}
	}
	return all
}

// sendNotes sends notes over streams. On one that breaks they are sent again with
// all others when there is a new one.
func (d *Driver) sendNotes(all []cluster.Note, to []*stream) {
	for len(all) > 0 && len(to) > 0 {
		frame, n, err := encodeNotes(all)
		if err != nil {
			d.c.Logger.Error("notes of the cluster cannot be sent", slog.Any("error", err))
			return
		}
		sendAll(frame, to)
		all = all[n:]
	}
}

// encodeNotes makes a frame of as many notes as go into one, and returns how many
// those are.
func encodeNotes(all []cluster.Note) (frame []byte, n int, err error) {
	size := 0
	for n < len(all) && (n == 0 || size < maxNotes) {
		size += len(all[n].Key) + len(all[n].Value) + 100
		n++
	}
	b, err := json.Marshal(all[:n])
	if err != nil {
		return nil, 0, fmt.Errorf("encoding %d notes: %w", n, err)
	}
	return append([]byte{notes}, b...), n, nil
}

// takeNotes takes notes that another Caddy has sent.
func (d *Driver) takeNotes(from string, frame []byte) error {
	var all []cluster.Note
	if err := json.Unmarshal(frame, &all); err != nil {
		return fmt.Errorf("notes that are not understood: %w", err)
	}
	d.mu.Lock()
	changed := d.board.Merge(all)
	to := d.allStreams(from)
	for _, n := range changed {
		d.events = append(d.events, func() cluster.Event {
			d.c.Host.Noted(n)
			return nil
		})
	}
	d.mu.Unlock()
	d.wakeUp()
	d.sendNotes(changed, to)
	return nil
}
