//go:build linux

package cluster

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/caddy-usher/usher/test/addr"
	"github.com/caddy-usher/usher/test/harness"
)

// network is what lies between the Caddys of a town, and between each of them
// and etcd. It can be cut for each pair and in each direction: then nothing
// arrives and nothing is closed. What was sent before a cut arrives when that is
// over, as TCP sees to it.
type network struct {
	dirs []string // of the Caddys, by which a connection's owner is known

	mu      sync.Mutex
	changed *sync.Cond
	cuts    map[way]bool
	wires   map[*wire]struct{}
	closed  bool
	running sync.WaitGroup

	listeners []net.Listener // of all doors, closed ones too
}

// way is a direction: from one place to another. Places are the numbers of
// Caddys, or theEtcd.
type way struct{ from, to int }

const theEtcd = -1

func (w way) back() way { return way{w.to, w.from} }

// wire is one connection.
type wire struct {
	way    way // from the side that opened it
	mu     sync.Mutex
	ends   []net.Conn
	closed bool
}

// newNetwork makes the network of so many Caddys, and them. It ends after them:
// without it they could not leave.
func newNetwork(t *testing.T, caddys int) (*network, []*harness.Caddy) {
	t.Helper()
	n := &network{cuts: make(map[way]bool), wires: make(map[*wire]struct{})}
	n.changed = sync.NewCond(&n.mu)
	t.Cleanup(n.close)
	all := harness.Together(t, caddys)
	for _, c := range all {
		n.dirs = append(n.dirs, c.Dir)
	}
	return n, all
}

// cut lets nothing through any more, on these ways.
func (n *network) cut(ways ...way) { n.set(true, ways) }

// mend lets all through again.
func (n *network) mend(ways ...way) { n.set(false, ways) }

func (n *network) set(cut bool, ways []way) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, w := range ways {
		n.cuts[w] = cut
	}
	n.changed.Broadcast()
}

// both are the two ways between two places.
func both(a, b int) []way { return []way{{a, b}, {b, a}} }

// around are all ways to and from a Caddy, those to etcd too.
func (n *network) around(k int) (all []way) {
	all = both(k, theEtcd)
	for j := range n.dirs {
		if j != k {
			all = append(all, both(k, j)...)
		}
	}
	return all
}

// connections counts those between Caddys, and those to etcd.
func (n *network) connections() (peers, etcd int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for w := range n.wires {
		if w.way.to == theEtcd {
			etcd++
		} else {
			peers++
		}
	}
	return peers, etcd
}

// pass waits until a way is open, and reports false if the network has ended.
func (n *network) pass(ways ...way) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		blocked := false
		for _, w := range ways {
			blocked = blocked || n.cuts[w]
		}
		if n.closed || !blocked {
			return !n.closed
		}
		n.changed.Wait()
	}
}

func (n *network) close() {
	n.mu.Lock()
	n.closed = true
	n.changed.Broadcast()
	for _, l := range n.listeners {
		l.Close()
	}
	for w := range n.wires {
		w.close()
	}
	n.mu.Unlock()
	n.running.Wait()
}

func (w *wire) add(c net.Conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		w.ends = append(w.ends, c)
	}
	return !w.closed
}

func (w *wire) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	for _, c := range w.ends {
		c.Close()
	}
}

// door is where others reach a Caddy, or a Caddy reaches etcd: a proxy in front
// of it. It is open as long as the process behind it may live. A closed one
// refuses connections, and for Caddys that is the proof that the other one has
// ended: so it is closed only after the end, and never by a cut.
type door struct {
	n       *network
	address string
	target  string
	owner   func(net.Conn) (way, bool) // of a connection that was opened
	open    net.Listener               // nil: closed
}

// toPeer makes the door of a Caddy. It is closed.
func (n *network) toPeer(k int, address, target string) *door {
	return &door{n: n, address: address, target: target, owner: func(c net.Conn) (way, bool) {
		from, ok := n.caller(c)
		return way{from, k}, ok
	}}
}

// toEtcd makes the door through which a Caddy reaches etcd, which is open.
func (n *network) toEtcd(t *testing.T, k int, target string) *door {
	d := &door{n: n, address: addr.Free(t).String(), target: target, owner: func(net.Conn) (way, bool) { return way{k, theEtcd}, true }}
	d.unlock(t)
	return d
}

// unlock opens the door.
func (d *door) unlock(t *testing.T) {
	t.Helper()
	var l net.Listener
	harness.Eventually(t, soon, func() (ok bool) {
		var err error
		l, err = net.Listen("tcp", d.address)
		return err == nil
	}, "listening at %s", d.address)
	d.open = l
	d.n.mu.Lock()
	d.n.listeners = append(d.n.listeners, l)
	d.n.mu.Unlock()
	d.n.running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			d.n.running.Go(func() { d.carry(c) })
		}
	})
}

// lock closes the door.
func (d *door) lock() {
	if d.open != nil {
		d.open.Close()
		d.open = nil
	}
}

// carry is the life of a connection.
func (d *door) carry(client net.Conn) {
	n := d.n
	defer client.Close()
	way, ok := d.owner(client)
	if !ok {
		return // it was closed meanwhile
	}
	w := &wire{way: way, ends: []net.Conn{client}}
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return
	}
	n.wires[w] = struct{}{}
	n.mu.Unlock()
	defer func() {
		w.close()
		n.mu.Lock()
		delete(n.wires, w)
		n.mu.Unlock()
	}()
	if !n.pass(way, way.back()) {
		return
	}
	server, err := net.Dial("tcp", d.target)
	if err != nil || !w.add(server) {
		if err == nil {
			server.Close()
		}
		return
	}
	var both sync.WaitGroup
	both.Go(func() { w.copy(n, server, client, way) })
	both.Go(func() { w.copy(n, client, server, way.back()) })
	both.Wait()
}

// copy passes on what comes, in one direction, and the end of it.
func (w *wire) copy(n *network, to, from net.Conn, way way) {
	b := make([]byte, 32<<10)
	for {
		k, err := from.Read(b)
		if !n.pass(way) {
			w.close()
			return
		}
		if k > 0 {
			if _, err := to.Write(b[:k]); err != nil {
				w.close()
				return
			}
		}
		if err == io.EOF {
			_ = to.(*net.TCPConn).CloseWrite()
			return
		}
		if err != nil {
			w.close()
			return
		}
	}
}

// caller is the Caddy that opened a connection: the kernel knows the process of
// the socket.
func (n *network) caller(c net.Conn) (int, bool) {
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		panic(err)
	}
	client, server := c.RemoteAddr().(*net.TCPAddr), c.LocalAddr().(*net.TCPAddr)
	ends := fmt.Sprintf(" 0100007F:%04X 0100007F:%04X ", client.Port, server.Port)
	for line := range strings.Lines(string(table)) {
		if !strings.Contains(line, ends) {
			continue
		}
		fields := strings.Fields(line)
		if len(fields) < 10 || fields[9] == "0" {
			return 0, false
		}
		return n.holder("socket:[" + fields[9] + "]")
	}
	return 0, false
}

// holder is the Caddy that has a file open. They run in their directories.
func (n *network) holder(file string) (int, bool) {
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range processes {
		dir, err := os.Readlink(p + "/cwd")
		if err != nil {
			continue
		}
		for k := range n.dirs {
			if n.dirs[k] != dir {
				continue
			}
			files, _ := filepath.Glob(p + "/fd/*")
			for _, f := range files {
				if target, err := os.Readlink(f); err == nil && target == file {
					return k, true
				}
			}
		}
	}
	return 0, false
}
