package process

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"

	"github.com/caddy-usher/usher/scaler"
)

// fixedAddress resolves the address of the configuration.
func (b *Backend) fixedAddress(resolve resolver) (netip.AddrPort, error) {
	t, err := resolve.parse(b.Address)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("listen tcp: %w", err)
	}
	address, ok := t.constant()
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("listen tcp %q: the address is the same for all instances; {usher.*} has no place in it", b.Address)
	}
	if address == "" && b.Address != "" {
		return netip.AddrPort{}, fmt.Errorf("listen tcp %q: the address is empty", b.Address)
	}
	return parseFixedAddress(b.Listen, address)
}

// parseFixedAddress reads the address of `listen tcp <address>`. The zero value
// means that each instance gets a port of its own.
func parseFixedAddress(listen, address string) (netip.AddrPort, error) {
	var none netip.AddrPort
	if address == "" {
		return none, nil
	}
	if listen != "" && listen != listenTCP {
		return none, fmt.Errorf("listen %s takes no address, but has %q: only listen tcp does", listen, address)
	}
	host, portText, err := net.SplitHostPort(address)
	if err != nil {
		return none, fmt.Errorf("listen tcp %q is not an address: write the host and the port, as in 127.0.0.1:3000", address)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || port == 0 {
		return none, fmt.Errorf("listen tcp %q: the port has to be a number from 1 to 65535", address)
	}
	if host == "" || host == "localhost" {
		host = loopback
	}
	ip, err := netip.ParseAddr(host)
	if err != nil || !isFixedHost(ip) {
		return none, fmt.Errorf("listen tcp %q: the program runs on this machine, so Usher reaches it at a loopback address; write %s, also for a program that listens on all addresses, or %s for one that listens on IPv6 only",
			address, net.JoinHostPort(loopback, portText), net.JoinHostPort(loopback6, portText))
	}
	return netip.AddrPortFrom(ip, uint16(port)), nil
}

// isFixedHost says whether programs can have a fixed port at ip.
func isFixedHost(ip netip.Addr) bool {
	return ip == netip.MustParseAddr(loopback) || ip == netip.IPv6Loopback()
}

// FixedAddress is the address that all instances would listen on, if the program
// has a fixed one.
func (b *Backend) FixedAddress() string {
	if b.state == nil || !b.state.current().fixed.IsValid() {
		return ""
	}
	return b.state.current().fixed.String()
}

// takeFixed takes the one address that the program listens on.
func (in *instance) takeFixed(at netip.AddrPort) *scaler.Failure {
	ln, err := net.Listen("tcp", at.String())
	if err == nil {
		err = ln.Close()
	}
	if err != nil {
		if f := quotaFailure(err); f != nil {
			return f
		}
		return &scaler.Failure{
			Reason: scaler.ReasonConflict, Short: "its address is in use",
			Detail: whyNotFree(err) + "; stop it, or give the program and 'listen tcp' another port",
			Err:    err,
		}
	}
	if !ports.claim(at) {
		return &scaler.Failure{
			Reason: scaler.ReasonConflict, Short: "its address is in use",
			Detail: fmt.Sprintf("the program listens on %s (listen tcp %[1]s), and another instance on this machine has that address", at),
		}
	}
	in.fixed, in.port = at, int(at.Port())
	return nil
}

// whyNotFree says what an error of listening means.
func whyNotFree(err error) string {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return "another program, or an instance that has not ended yet, listens there already"
	case errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.EAFNOSUPPORT):
		return "this machine does not have that address: its IPv6 may be turned off"
	}
	return "nothing can listen there"
}

var _ scaler.FixedAddresser = (*Backend)(nil)
