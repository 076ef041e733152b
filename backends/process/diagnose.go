package process

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/caddy-usher/usher/scaler"
)

// listening is where the processes of an instance listen.
type listening struct {
	tcp  []netip.AddrPort
	unix []string // paths
	// known is false if not all of their files can be looked at.
	known bool
	// apart is true if the instance has a network of its own.
	apart bool
	// denied is true if Caddy may not connect to the instance's socket.
	denied bool
}

// Diagnose tells where an instance listens that is not ready, and what it has
// written.
func (r *runner) Diagnose(_ context.Context, instanceID string) scaler.Diagnosis {
	r.mu.Lock()
	k := slices.IndexFunc(r.instances, func(in *instance) bool { return in.id == instanceID && !in.ended })
	var in *instance
	if k >= 0 {
		in = r.instances[k]
	}
	r.mu.Unlock()
	if in == nil {
		return scaler.Diagnosis{}
	}
	p := r.plan.Load()
	at := listeningOf(in)
	at.denied = in.socket != "" && denies(in.socket)
	d := diagnose(in, p, at)
	d.Output = in.output.tail()
	return d
}

// diagnose compares where an instance listens with what it was told.
func diagnose(in *instance, p *plan, at listening) (d scaler.Diagnosis) {
	told := in.told()
	overridden := p.listen == listenTCP && !in.fixed.IsValid() && p.overridesPort(in.port)
	var elsewhere []netip.AddrPort
	right := false
	for _, a := range at.tcp {
		if in.port != 0 && reaches(a, told) {
			right = true
		} else {
			elsewhere = append(elsewhere, a)
		}
	}
	right = right || in.socket != "" && slices.Contains(at.unix, in.socket)
	var seen, hints []string
	if len(at.tcp)+len(at.unix) > 0 {
		seen = append(seen, "its processes listen on "+enumerate(allOf(at), len(at.tcp)+len(at.unix)))
	}
	switch {
	case at.apart:
		d.Mistake, d.Short = true, "runs in a network of its own, which Usher cannot reach"
		hints = append(hints, "publish the port of the instance on "+told.String()+" of this machine")
	case at.denied:
		d.Mistake, d.Short = true, "listens on a socket to which Caddy may not connect"
		hints = append(hints, p.admitHint(in.socket))
	case right && p.listen != listenFD, right && len(elsewhere) == 0:
	case right:
		d.Mistake, d.Short = true, "listens on "+enumerate(forClients(elsewhere), mostShown)+", but was passed a socket as file descriptor 3"
	case len(elsewhere) > 0 && in.socket != "":
		d.Mistake, d.Short = true, "listens on "+enumerate(forClients(elsewhere), mostShown)+", but was told a socket"
		hints = append(hints, "give it {usher.socket} in an argument or a variable, or use listen tcp")
	case len(elsewhere) > 0 && in.fixed.IsValid():
		d.Mistake, d.Short = true, "listens on "+enumerate(forClients(elsewhere), mostShown)+", and not on "+told.String()+" as configured"
		hints = append(hints, "correct the address of listen tcp, or leave it out and give the instance {usher.port}")
	case len(elsewhere) > 0:
		d.Mistake, d.Short = true, "listens on "+enumerate(forClients(elsewhere), mostShown)+", but was told "+toldInWords(told, elsewhere)
		if hasPort(elsewhere, told.Port()) {
			hints = append(hints, "the port is right and the address is not: make it listen on "+told.Addr().String()+", for example by {usher.address}, which has both")
		} else {
			hints = append(hints, "make it listen on "+told.String()+": give it {usher.port} in an argument or a variable, or let it read PORT; if its port is fixed, use listen tcp with that address")
		}
	case len(at.unix) > 0 && in.socket != "":
		d.Mistake, d.Short = true, "listens on another socket than it was told"
		hints = append(hints, "give it {usher.socket} in an argument or a variable")
	case len(at.unix) > 0:
		d.Mistake, d.Short = true, "listens on a socket, but was told port "+strconv.Itoa(in.port)
		hints = append(hints, "give it {usher.port} in an argument or a variable, or use listen unix")
	case at.known:
		d.Short = "does not listen yet"
	}
	if overridden && !right && !at.apart {
		d.Mistake = true
		d.Short = strings.TrimPrefix(d.Short+"; env PORT in the configuration overrides the port that it was told", "; ")
		hints = append(hints, "leave out env PORT, or write env PORT {usher.port}")
	}
	d.Detail = strings.Join(append(seen, hints...), "; ")
	return d
}

// denies says whether Caddy lacks the permission to connect to a socket.
func denies(path string) bool {
	conn, err := net.DialTimeout("unix", path, deniesWait)
	if err == nil {
		conn.Close()
	}
	return errors.Is(err, fs.ErrPermission)
}

// deniesWait is for a socket whose queue of connections is full.
const deniesWait = 100 * time.Millisecond

// admitHint says how Caddy could be let in at the socket of an instance.
func (p *plan) admitHint(path string) string {
	hint := "permission denied for " + path + ": the program has to make its socket writable for the group of the directory that it is in, which is Caddy's (a umask of 007 does)"
	if p.account != nil && !p.account.Own {
		hint += ", or Caddy needs the capability CAP_DAC_OVERRIDE"
	}
	return hint
}

// overridesPort says whether the configuration sets PORT to something else
// than the port of the instance, and tells that port in no other way.
func (p *plan) overridesPort(port int) bool {
	own, ok := p.env["PORT"]
	if !ok {
		return false
	}
	if fixed, ok := own.constant(); !ok || fixed == strconv.Itoa(port) {
		return false
	}
	return !p.tellsPort()
}

// tellsPort says whether a placeholder gives the port to the instances.
func (p *plan) tellsPort() bool {
	tells := func(t template) bool {
		return slices.ContainsFunc(t, func(p part) bool { return p.Key == keyPort || p.Key == keyAddress })
	}
	if tells(p.command) || slices.ContainsFunc(p.args, tells) || tells(p.dir) {
		return true
	}
	for _, value := range p.env {
		if tells(value) {
			return true
		}
	}
	return false
}

// reaches says whether a connection to an address may reach a socket that
// listens on a. What listens on all addresses of IPv6 often takes IPv4, too.
func reaches(a, address netip.AddrPort) bool {
	ip, wanted := a.Addr().Unmap(), address.Addr().Unmap()
	return a.Port() == address.Port() && (ip == wanted || ip.IsUnspecified() && (ip.Is4() == wanted.Is4() || ip.Is6()))
}

// toldInWords is the port that an instance was told, with the address where
// the port alone is what it listens on.
func toldInWords(told netip.AddrPort, instead []netip.AddrPort) string {
	if hasPort(instead, told.Port()) {
		return told.String()
	}
	return "port " + strconv.Itoa(int(told.Port()))
}

func hasPort(all []netip.AddrPort, port uint16) bool {
	return slices.ContainsFunc(all, func(a netip.AddrPort) bool { return a.Port() == port })
}

// mostShown is how many addresses a client is told.
const mostShown = 4

// forClients writes addresses. Which networks this machine is in is none of
// their business.
func forClients(all []netip.AddrPort) []string {
	var words []string
	for _, a := range all {
		if ip := a.Addr().Unmap(); ip.IsUnspecified() || ip.IsLoopback() {
			words = append(words, a.String())
		} else {
			words = append(words, fmt.Sprintf("port %d of another address", a.Port()))
		}
	}
	return words
}

// allOf writes all addresses and paths.
func allOf(at listening) []string {
	var words []string
	for _, a := range at.tcp {
		words = append(words, net.JoinHostPort(a.Addr().String(), strconv.Itoa(int(a.Port()))))
	}
	return append(words, at.unix...)
}

// enumerate joins words, at most so many.
func enumerate(words []string, most int) string {
	if more := len(words) - most; more > 0 {
		words = append(slices.Clone(words[:most]), fmt.Sprintf("%d more", more))
	}
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " and " + words[last]
}

// sorted orders addresses: those of IPv6 first, then by address and port.
func (at listening) sorted() listening {
	sort.Slice(at.tcp, func(i, k int) bool {
		a, b := at.tcp[i], at.tcp[k]
		return cmp.Or(cmp.Compare(b.Addr().BitLen(), a.Addr().BitLen()), a.Compare(b)) < 0
	})
	at.tcp = slices.Compact(at.tcp)
	slices.Sort(at.unix)
	at.unix = slices.Compact(at.unix)
	return at
}

// Interface guard.
var _ scaler.Diagnoser = (*runner)(nil)
