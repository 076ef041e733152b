package discovery

import (
	"slices"
	"strings"

	"github.com/caddy-usher/usher/scaler"
)

// The keys that Read itself deals with, and the modules.
const (
	keyEnable = "enable"
	KeyPort   = "port"
)

// Keys are what an object may say about its service. What a key means is the
// same on every platform; only port is the module's own business and does not
// reach scaler.Found. There is no key for what is run (command, image,
// environment, user), for where it is (address, namespace), and for whom it
// belongs to (owner).
var Keys = []string{
	keyEnable, "name", "hosts", "instances", "concurrency", "idle-timeout", "start-timeout",
	"drain-timeout", "ready", KeyPort, "scale",
}

// A Scheme says how the keys are written on a platform.
type Scheme struct {
	// Prefix stands before each key.
	Prefix string

	// Upper is true where keys are written as variables are: IDLE_TIMEOUT.
	Upper bool

	// Own are keys with the prefix that Usher writes on objects itself.
	Own []string
}

// Key returns a key as the platform has it.
func (s Scheme) Key(key string) string {
	if s.Upper {
		key = strings.ToUpper(strings.ReplaceAll(key, "-", "_"))
	}
	return s.Prefix + key
}

// Enable returns the key that makes a service of an object, if its value is
// "true".
func (s Scheme) Enable() string { return s.Key(keyEnable) }

// Read adds the keys of an object to f, and returns the value of the key port.
// It returns false if the object says nothing of being a service: then f stays
// as it is. A value that could be read as a placeholder makes no service: it
// would be replaced by what Caddy knows and the object must not.
func (s Scheme) Read(f *scaler.Found, labels map[string]string) (port string, ok bool) {
	if labels[s.Enable()] != "true" {
		return "", false
	}
	f.Labels = make(map[string]string)
	known := make(map[string]bool, len(Keys))
	for _, key := range Keys {
		written := s.Key(key)
		known[written] = true
		value, given := labels[written]
		switch {
		case !given || key == keyEnable:
		case strings.ContainsFunc(value, acts):
			f.Problem = written + " holds a brace or a control character: write the value itself"
		case key == KeyPort:
			port = value
		default:
			f.Labels[key] = value
		}
	}
	for written := range labels {
		if strings.HasPrefix(written, s.Prefix) && !known[written] && !slices.Contains(s.Own, written) {
			f.Ignored = append(f.Ignored, written)
		}
	}
	slices.Sort(f.Ignored)
	return port, true
}

// acts reports whether a character can make a value be read as something else.
func acts(c rune) bool { return c == '{' || c == '}' || c < ' ' || c == 0x7f }

// Name returns the name of an object in a form that a service can have: lower
// case, and a hyphen in place of what no name of a service holds.
func Name(object string) string {
	name := strings.Map(func(c rune) rune {
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '.', c == '_', c == '-':
			return c
		case c >= 'A' && c <= 'Z':
			return c + 'a' - 'A'
		}
		return '-'
	}, object)
	for strings.Contains(name, "..") {
		name = strings.ReplaceAll(name, "..", ".")
	}
	name = strings.TrimLeft(name, ".-_")
	return strings.TrimRight(name[:min(len(name), longestName)], ".-_")
}

// longestName is how long the name of a service can be.
const longestName = 63
