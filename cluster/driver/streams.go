package driver

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/caddy-usher/usher/cluster"
	"github.com/caddy-usher/usher/cluster/link"
)

// stream is the connection over which two Caddys have their session.
type stream struct {
	conn   *link.Conn
	dialer string // the boot of the Caddy that opened it
}

// purpose is what the connections of streams say that they are for.
const purpose = "session"

// accept takes a connection that another Caddy opened.
func (d *Driver) accept(ctx context.Context, conn *link.Conn) {
	peer := conn.Peer()
	if peer.Purpose == asking && d.c.Answer != nil {
		d.answer(ctx, conn)
		return
	}
	if peer.Purpose != purpose {
		// It only wants to know who answers. Closing it is up to the other side.
		_, _ = conn.Receive()
		return
	}
	s := &stream{conn, peer.Boot}
	if d.begin(s) {
		d.running.Go(func() { d.reach(s) })
		d.serve(s)
	}
}

// serve takes what comes over a stream, until it breaks.
func (d *Driver) serve(s *stream) {
	err := d.receive(s)
	s.conn.Close()
	if d.end(s) && d.ctx.Err() == nil && !errors.Is(err, io.EOF) && !errors.Is(err, link.ErrClosed) {
		d.c.Logger.Info("the connection to another member is broken", slog.String("member", s.conn.Peer().ID), slog.Any("error", err))
	}
}

// begin makes a stream the one to its Caddy. If both open one at the same time,
// the one of the lower boot stays on both sides.
func (d *Driver) begin(s *stream) bool {
	boot := s.conn.Peer().Boot
	d.mu.Lock()
	old := d.streams[boot]
	if d.ctx.Err() != nil || boot == d.c.Self.Boot || old != nil && old.dialer < s.dialer {
		d.mu.Unlock()
		return false
	}
	d.streams[boot] = s
	d.events = append(d.events, func() cluster.Event { return cluster.StreamUp{Boot: boot} })
	known := d.board.All()
	d.mu.Unlock()
	d.wakeUp()
	d.sendNotes(known, []*stream{s})
	if old != nil {
		go old.conn.Close()
	}
	return true
}

// end forgets a stream. It reports whether it was still the one to its Caddy.
func (d *Driver) end(s *stream) bool {
	boot := s.conn.Peer().Boot
	d.mu.Lock()
	current := d.streams[boot] == s
	if current {
		delete(d.streams, boot)
		d.events = append(d.events, func() cluster.Event { return cluster.StreamDown{Boot: boot} })
	}
	d.mu.Unlock()
	d.wakeUp()
	d.wakeDialer()
	return current
}

// receive takes what comes over a stream until it breaks or is replaced.
func (d *Driver) receive(s *stream) error {
	boot := s.conn.Peer().Boot
	var parts joiner
	for {
		frame, err := s.conn.Receive()
		if err != nil {
			return err
		}
		switch frame[0] {
		case notes:
			err = d.takeNotes(boot, frame[1:])
		case news, newsOn:
			err = d.takeNews(boot, frame)
		}
		if err != nil {
			return err
		}
		if frame[0] > more {
			continue
		}
		whole, err := parts.add(frame)
		if err != nil {
			return err
		}
		if whole == nil {
			continue
		}
		m, err := decode(whole)
		if err != nil {
			return err
		}
		d.mu.Lock()
		current := d.streams[boot] == s
		if current {
			d.events = append(d.events, func() cluster.Event { return cluster.Received{From: boot, Message: m} })
		}
		d.mu.Unlock()
		if !current {
			return link.ErrClosed
		}
		d.wakeUp()
	}
}

func (d *Driver) send(o cluster.Send) {
	d.mu.Lock()
	s := d.streams[o.To]
	d.mu.Unlock()
	if s == nil {
		return
	}
	b, err := encode(o.Message)
	if err == nil {
		err = sendParts(s.conn.Send, b)
	}
	if err != nil {
		// What was sent before is in doubt, and the rest must not arrive.
		d.disconnect(o.To)
	}
}

// disconnect closes the stream to a Caddy.
func (d *Driver) disconnect(boot string) {
	d.mu.Lock()
	s := d.streams[boot]
	d.mu.Unlock()
	if s != nil {
		go s.conn.Close() // it waits for a write, and its receiver says that it is down
	}
}

// connect sets the Caddy to keep a stream to.
func (d *Driver) connect(p cluster.Peer) {
	d.mu.Lock()
	d.target = p
	d.mu.Unlock()
	d.wakeDialer()
}

func (d *Driver) wakeDialer() {
	select {
	case d.dialWake <- struct{}{}:
	default:
	}
}

// The pauses between attempts to connect.
const (
	firstPause   = 20 * time.Millisecond
	longestPause = time.Second
)

// dial keeps a stream to the target.
func (d *Driver) dial() {
	pause := firstPause
	var before string
	for d.ctx.Err() == nil {
		d.mu.Lock()
		target := d.target
		connected := target.Boot == "" || d.streams[target.Boot] != nil
		d.mu.Unlock()
		if target.Boot != before {
			before, pause = target.Boot, firstPause
		}
		if connected {
			pause = firstPause
			select {
			case <-d.dialWake:
			case <-d.ctx.Done():
			}
			continue
		}
		if d.dialOnce(target) {
			continue
		}
		t := time.NewTimer(pause)
		pause = min(2*pause, longestPause)
		select {
		case <-t.C:
		case <-d.dialWake:
		case <-d.ctx.Done():
		}
		t.Stop()
	}
}

// dialOnce tries to connect, and reports whether it did.
func (d *Driver) dialOnce(target cluster.Peer) bool {
	conn, err := d.link.Dial(d.ctx, target.Address, target.ID, purpose)
	if err != nil {
		if d.ctx.Err() != nil {
			return false
		}
		d.trouble("dial", "the leader cannot be reached; this Caddy goes on until its lease ends",
			slog.String("leader", target.ID), slog.String("address", target.Address), slog.Any("error", err))
		return false
	}
	d.better("dial", "the leader can be reached again", slog.String("leader", target.ID))
	if conn.Peer().Boot != target.Boot {
		// Another process of the same member: the one that is looked for has
		// ended, which the search for proof finds out.
		conn.Close()
		return false
	}
	s := &stream{conn, d.c.Self.Boot}
	if !d.begin(s) {
		conn.Close()
		return false
	}
	d.running.Go(func() { d.serve(s) })
	return true
}
