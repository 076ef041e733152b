package process

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
)

// part is a piece of text, or the name of a value that each instance has its
// own of.
type part struct {
	Text string `json:",omitempty"`
	Key  string `json:",omitempty"`
}

// template is a text with the placeholders of the instance still open. The
// resolved ones are text, and are never looked at for placeholders again.
type template []part

// constant returns the text if it is the same for every instance.
func (t template) constant() (string, bool) {
	var sb strings.Builder
	for _, p := range t {
		if p.Key != "" {
			return "", false
		}
		sb.WriteString(p.Text)
	}
	return sb.String(), true
}

// fill returns the text for one instance.
func (t template) fill(values map[string]string) string {
	var sb strings.Builder
	for _, p := range t {
		if p.Key != "" {
			sb.WriteString(values[p.Key])
		} else {
			sb.WriteString(p.Text)
		}
	}
	return sb.String()
}

// The values that each instance has its own of.
const (
	keyPort     = "usher.port"
	keyAddress  = "usher.address"
	keySocket   = "usher.socket"
	keyInstance = "usher.instance"
	keyService  = "usher.service"
)

// resolver reads texts with placeholders. It knows which values there are for
// the way in which the instances listen.
type resolver struct {
	listen string
	known  []string
	// dry leaves out the reading of variables and files, for checks at a time
	// and place that need not be those of the running Caddy.
	dry bool
}

func newResolver(listen string) resolver {
	known := []string{keyPort, keyAddress, keyInstance, keyService}
	if listen == listenUnix {
		known = []string{keySocket, keyInstance, keyService}
	}
	return resolver{listen: listen, known: known}
}

// parse splits s into text and open placeholders, and resolves those that are
// the same for all instances.
func (r resolver) parse(s string) (template, error) {
	var t template
	text := func(s string) {
		if n := len(t); n > 0 && t[n-1].Key == "" {
			t[n-1].Text += s
		} else if s != "" {
			t = append(t, part{Text: s})
		}
	}
	done := 0
	for i := 0; i < len(s); i++ {
		if s[i] != '{' {
			continue
		}
		key := placeholderAt(s, i)
		if key == "" {
			continue
		}
		end := i + len(key) + len("{}")
		if i > 0 && s[i-1] == '\\' {
			text(s[done:i-1] + s[i:end])
		} else {
			text(s[done:i])
			p, err := r.resolve(key)
			if err != nil {
				return nil, err
			}
			if p.Key != "" {
				t = append(t, p)
			} else {
				text(p.Text)
			}
		}
		done, i = end, end-1
	}
	text(s[done:])
	return t, nil
}

// resolve returns what stands for one placeholder.
func (r resolver) resolve(key string) (part, error) {
	switch namespace, name, _ := strings.Cut(key, "."); namespace {
	case "usher":
		return part{Key: key}, r.check(key)
	case "env":
		if r.dry {
			return part{}, nil
		}
		return part{Text: os.Getenv(name)}, nil
	case "file":
		if r.dry && name != "" {
			return part{}, nil
		}
		if name != "" {
			content, err := readPlaceholder(name)
			return part{Text: content}, err
		}
	}
	return part{}, refusePlaceholder(key, r.listen)
}

// check says which placeholders of Usher's make sense here.
func (r resolver) check(key string) error {
	switch {
	case slices.Contains(r.known, key):
		return nil
	case key == keySocket:
		return fmt.Errorf("{%s} exists with listen unix only; with listen %s use {usher.port} or {usher.address}", key, r.listen)
	case key == keyPort, key == keyAddress:
		return fmt.Errorf("{%s} does not exist with listen unix; use {usher.socket}", key)
	}
	return fmt.Errorf("placeholder {%s} is not known; there are {%s}", key, strings.Join(r.known, "}, {"))
}

// maxPlaceholderFile bounds what {file.*} reads, as Caddy does.
const maxPlaceholderFile = 1 << 20

// readPlaceholder returns the content of a file without its last newline.
func readPlaceholder(path string) (string, error) {
	info, err := os.Stat(path)
	if err == nil && info.Size() > maxPlaceholderFile {
		return "", fileUnusable(fmt.Errorf("placeholder {file.%s}: the file is larger than 1 MiB", path))
	}
	var content []byte
	if err == nil {
		content, err = os.ReadFile(path)
	}
	if err != nil {
		return "", fileMissing("placeholder {file."+path+"}: the file", err)
	}
	return strings.TrimSuffix(strings.TrimSuffix(string(content), "\n"), "\r"), nil
}

var (
	// foreignNamespace matches the placeholders of Caddy that have no meaning
	// for a process, with the shorthands that a Caddyfile has for them.
	foreignNamespace = regexp.MustCompile(`^(http|system|time|tls|vars|event|caddy|header|cookie|labels|path|query|re|rp|resp|err|file_match)\.[\w.*$%?/:-]+$`)
	// shorthand matches the Caddyfile's shorthands of one word. In a site
	// block they arrive in their long form, in global options and JSON not.
	shorthand = regexp.MustCompile(`^(host|hostport|port|method|uri|%uri|path|%path|dir|file|query|%query|\?query|remote|remote_host|remote_port|client_ip|scheme|uuid|upstream_hostport|orig_\??\w+|tls_\w+)$`)
)

// placeholderAt returns the key of the placeholder whose brace opens at s[i],
// or "" if the brace is text of another kind: JSON, a shell's ${variable},
// awk, a template in double braces.
func placeholderAt(s string, i int) string {
	end := strings.IndexByte(s[i:], '}')
	if end < 0 {
		return ""
	}
	key := s[i+1 : i+end]
	for _, own := range []string{"usher.", "env.", "file."} {
		if strings.HasPrefix(key, own) && !strings.ContainsAny(key, "{\"\n") {
			return key
		}
	}
	if i > 0 && (s[i-1] == '$' || s[i-1] == '{') {
		// What the Caddyfile adapter made of ${port} is no longer what was
		// meant, so it is not let through as text.
		if !strings.HasPrefix(key, "http.") || !foreignNamespace.MatchString(key) {
			return ""
		}
		return key
	}
	if foreignNamespace.MatchString(key) || shorthand.MatchString(key) {
		return key
	}
	return ""
}

// refusePlaceholder says what to use in place of a placeholder that belongs to
// a request, or to no process.
func refusePlaceholder(key, listen string) error {
	instead := ""
	switch strings.TrimPrefix(key, "http.request.") {
	case "port", "local.port", "remote.port", "remote_port":
		instead = keyPort
	case "hostport", "local", "host", "local.host", "upstream_hostport", "http.reverse_proxy.upstream.hostport":
		instead = keyAddress
	case "uuid":
		instead = keyInstance
	}
	if listen == listenUnix && (instead == keyPort || instead == keyAddress) {
		instead = keySocket
	}
	if instead != "" {
		return fmt.Errorf("placeholder {%s} belongs to a request, and no request shapes a process; use {%s}", key, instead)
	}
	return fmt.Errorf("placeholder {%s} has no value when a process is started; there are {usher.*}, {env.*} and {file.*} (for the text itself write \\{%s})", key, key)
}
