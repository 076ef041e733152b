package sleep

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// profile is a heap profile in which every allocation is recorded.
type profile []record

// record is the live memory that one stack has allocated.
type record struct {
	objects, bytes int64
	stack          []string // functions, the innermost first
}

// parseProfile reads the text form of a heap profile.
func parseProfile(text string) (profile, error) {
	var p profile
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasPrefix(line, "heap profile:"), line == "":
		case strings.HasPrefix(line, "#\t"):
			if fields := strings.Fields(line); len(p) > 0 && len(fields) >= 3 {
				function, _, _ := strings.Cut(fields[2], "+0x")
				r := &p[len(p)-1]
				r.stack = append(r.stack, function)
			}
		case strings.HasPrefix(line, "#"):
		default:
			var r record
			if _, err := fmt.Sscanf(line, "%d: %d [", &r.objects, &r.bytes); err != nil {
				return nil, fmt.Errorf("the heap profile has the line %q: %w", line, err)
			}
			p = append(p, r)
		}
	}
	return p, nil
}

// timers counts the timers that are held.
func (p profile) timers() int {
	n := int64(0)
	for _, r := range p {
		if slices.Contains(r.stack, "time.newTimer") {
			n += r.objects
		}
	}
	return int(n)
}

const (
	caddyPackage = "github.com/caddyserver/caddy/v2."
	proxyPackage = "github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy."
	ourPackages  = "github.com/caddy-usher/usher/"
)

// cause names what a stack's memory is for: the innermost function of Usher,
// else the part of Caddy.
func cause(stack []string) string {
	has := func(prefix string) bool {
		return slices.ContainsFunc(stack, func(f string) bool { return strings.HasPrefix(f, prefix) })
	}
	for _, f := range stack {
		if own, ok := strings.CutPrefix(f, ourPackages); ok {
			return own
		}
	}
	switch {
	case has(proxyPackage):
		return "Caddy: reverse_proxy"
	case has(caddyPackage + "unsyncedDecodeAndRun"):
		return "Caddy: modules and their decoded options"
	case has(caddyPackage + "changeConfig"):
		return "Caddy: the configuration as the admin API shows it"
	}
	return "all else"
}

// difference tells in which parts a has more, or less, than b.
func difference(a, b profile) []Part {
	sums := make(map[string]int64)
	for _, r := range a {
		sums[cause(r.stack)] += r.bytes
	}
	for _, r := range b {
		sums[cause(r.stack)] -= r.bytes
	}
	var parts []Part
	for name, n := range sums {
		if n != 0 {
			parts = append(parts, Part{Name: name, Bytes: n})
		}
	}
	slices.SortFunc(parts, func(x, y Part) int {
		return cmp.Or(cmp.Compare(y.Bytes, x.Bytes), strings.Compare(x.Name, y.Name))
	})
	return parts
}
