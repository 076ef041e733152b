package callback

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// mostURL is the length of the longest URL.
const mostURL = 2048

// Rule is a prefix of the URLs to which callbacks may go.
type Rule struct {
	prefix  parsed
	private bool
}

// ParseRule reads a rule. It is a URL of scheme http or https with a host, and with a
// port and a path if need be. It allows URLs with the same scheme, host and port whose
// paths begin with the same segments.
//
// With private the host may have private addresses, such as 10.0.0.1 and 127.0.0.1. A
// rule whose host is an address allows that address in any case.
func ParseRule(text string, private bool) (Rule, error) {
	p, err := parse(text)
	if err != nil {
		return Rule{}, err
	}
	if p.query {
		return Rule{}, errors.New("a prefix has no query")
	}
	if p.ip.IsValid() && (p.ip.IsUnspecified() || p.ip.IsMulticast()) {
		return Rule{}, fmt.Errorf("%s is not the address of a host", p.ip)
	}
	if n := len(p.segments); p.segments[n-1] == "" {
		p.segments = p.segments[:n-1]
	}
	return Rule{p, private}, nil
}

// find returns the rule that allows a URL. One that allows private addresses goes
// first.
func find(rules []Rule, text string) (Rule, error) {
	u, err := parse(text)
	if err != nil {
		return Rule{}, err
	}
	var found *Rule
	for _, r := range rules {
		if r.allows(u) && (found == nil || r.private) {
			found = &r
		}
	}
	if found == nil {
		return Rule{}, errNotAllowed
	}
	return *found, nil
}

var errNotAllowed = errors.New("callbacks to it are not allowed")

func (r Rule) allows(u parsed) bool {
	p := r.prefix
	if p.scheme != u.scheme || p.host != u.host || p.port != u.port || len(p.segments) > len(u.segments) {
		return false
	}
	for k, s := range p.segments {
		if s != u.segments[k] {
			return false
		}
	}
	return true
}

// parsed is a URL in the form in which URLs are compared.
type parsed struct {
	scheme, host string // in lower case
	port         uint64
	ip           netip.Addr // of a host that is an address; else invalid
	segments     []string   // of the path, decoded; at least one
	query        bool
}

// parse reads a URL. What readers of URLs understand in different ways is an error, so
// that the receiver can mean nothing else by it.
func parse(text string) (p parsed, err error) {
	if len(text) > mostURL {
		return p, fmt.Errorf("it has %d bytes, and can have %d at most", len(text), mostURL)
	}
	for k := range len(text) {
		if c := text[k]; c <= ' ' || c >= 0x7f || c == '\\' || c == '#' {
			return p, fmt.Errorf("it has the character %q: percent-encode what is not ASCII, and leave out a fragment", c)
		}
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return p, errors.New("it is not a URL")
	case u.Scheme != "http" && u.Scheme != "https":
		return p, errors.New("it does not begin with https:// or http://")
	case u.Opaque != "" || u.Host == "":
		return p, errors.New("it has no host")
	case u.User != nil:
		return p, errors.New("it has a user before its host")
	}
	p.scheme, p.query = u.Scheme, u.RawQuery != "" || u.ForceQuery
	if err := p.readHost(u); err != nil {
		return p, err
	}
	return p, p.readPath(u)
}

func (p *parsed) readHost(u *url.URL) error {
	p.host = strings.ToLower(u.Hostname())
	switch port := u.Port(); {
	case port != "":
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return fmt.Errorf("it has the port %s, which there is not", port)
		}
		p.port = n
	case strings.HasSuffix(u.Host, ":"):
		return errors.New("it has an empty port")
	case p.scheme == "http":
		p.port = 80
	default:
		p.port = 443
	}
	if ip, err := netip.ParseAddr(p.host); err == nil {
		if ip.Zone() != "" {
			return errors.New("its address has a zone")
		}
		p.ip = ip.Unmap()
		p.host = p.ip.String()
		return nil
	}
	for k := range len(p.host) {
		if c := p.host[k]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '-' && c != '_' {
			return fmt.Errorf("its host has the character %q", c)
		}
	}
	// Some readers take 127.1 and 0x7f000001 for addresses.
	last := p.host[strings.LastIndexByte(p.host, '.')+1:]
	if last == "" || last[0] >= '0' && last[0] <= '9' {
		return errors.New("its host is neither a name nor an address")
	}
	return nil
}

func (p *parsed) readPath(u *url.URL) error {
	for s := range strings.SplitSeq(strings.TrimPrefix(u.EscapedPath(), "/"), "/") {
		s, err := url.PathUnescape(s)
		if err != nil {
			return errors.New("its path is not encoded well")
		}
		if name, _, _ := strings.Cut(s, ";"); name == "." || name == ".." {
			return errors.New("its path has a segment '..' or '.'")
		}
		for k := range len(s) {
			if c := s[k]; c < ' ' || c == 0x7f || c == '/' || c == '\\' || c == '%' {
				return fmt.Errorf("its path has an encoded %q", c)
			}
		}
		p.segments = append(p.segments, s)
	}
	return nil
}
