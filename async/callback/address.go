package callback

import (
	"fmt"
	"net/netip"
	"syscall"
)

// nat64 has the IPv4 addresses as a network with NAT64 reaches them.
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// special are the addresses that are not public, beside those that netip knows: the
// special-purpose registries of IANA, and what leads to IPv4 addresses in other ways.
var special = prefixes(
	"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
	"::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fec0::/10",
)

// noHost are addresses that belong to no host, whatever the network.
var noHost = prefixes("0.0.0.0/8", "240.0.0.0/4")

func prefixes(texts ...string) (all []netip.Prefix) {
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

func in(all []netip.Prefix, a netip.Addr) bool {
	for _, p := range all {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// checkAddress says whether a callback of the rule may be sent to an address.
func (r Rule) checkAddress(a netip.Addr) error {
	a = a.Unmap()
	if r.prefix.ip.IsValid() && a == r.prefix.ip {
		return nil // the rule names it
	}
	judged := a.WithZone("")
	if nat64.Contains(judged) {
		b := judged.As16()
		judged = netip.AddrFrom4([4]byte(b[12:]))
	}
	switch {
	case judged.IsMulticast(), judged.IsUnspecified(), judged.IsLinkLocalUnicast(), in(noHost, judged):
		return fmt.Errorf("%s has the address %s: callbacks are not sent to link-local, multicast and unspecified addresses", r.prefix.host, a)
	case r.private:
		return nil
	case judged.IsLoopback(), judged.IsPrivate(), in(special, judged):
		return fmt.Errorf("%s has the address %s, which is not public: to allow that, name the prefix in allow_private", r.prefix.host, a)
	}
	return nil
}

// control judges the address that is dialed, just before that.
func (r Rule) control(_, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("the address %s cannot be judged: %w", address, err)
	}
	return r.checkAddress(at.Addr())
}
