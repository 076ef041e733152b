package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/caddy-usher/usher/test/addr"
	"github.com/caddy-usher/usher/test/harness"
)

// A mistake in the transport gets the same answer as from a plain
// reverse_proxy with the same upstream, as fast, and its reason is said in
// last_error and by explain.
func TestMistakeInTheTransportIsAnsweredAsByPlainReverseProxy(t *testing.T) {
	c := newCaddy(t)
	serve := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok")) })
	plain, secure := httptest.NewServer(serve), httptest.NewTLSServer(serve)
	t.Cleanup(plain.Close)
	t.Cleanup(secure.Close)
	closed := addr.Refusing(t).String()

	mistakes := []struct {
		name, transport string
		tls             bool
		reason          string
	}{
		{"untrusted", "tls", true, "x509"},
		{"name", "tls\ntls_server_name example.com", true, "x509"},
		{"tls", "tls", false, "TLS"},
		{"proxy", "forward_proxy_url http://" + closed, false, "proxyconnect"},
		{"proxytls", "tls\nforward_proxy_url http://" + closed, true, "proxyconnect"},
		{"socks", "forward_proxy_url socks5://" + closed, false, "proxyconnect"},
		{"address", "local_address 203.0.113.1", false, "local_address"},
		{"right", "tls\ntls_insecure_skip_verify", true, ""},
	}
	var site strings.Builder
	for _, m := range mistakes {
		server, arguments := plain.Listener.Addr().String(), args()
		if m.tls {
			server, arguments = secure.Listener.Addr().String(), args("-tls")
		}
		transport := "transport http {\n" + m.transport + "\n}"
		fmt.Fprintf(&site, "handle /plain/%s {\nreverse_proxy %s {\n%s\n}\n}\n", m.name, server, transport)
		fmt.Fprintf(&site, "handle /usher/%s {\n%s\n}\n", m.name, harness.Usher(m.name, c.Backend(arguments...), transport))
	}
	c.Start(harness.Config{Site: site.String()})

	for _, m := range mistakes {
		for _, method := range []string{"GET", "POST"} {
			c.Do(harness.Request{Method: method, Path: "/usher/" + m.name}) // awake from here on
			took := func(side string) (harness.Response, time.Duration) {
				began := time.Now()
				r := c.Do(harness.Request{Method: method, Path: "/" + side + "/" + m.name})
				return r, time.Since(began)
			}
			want, slow := took("plain")
			got, d := took("usher")
			if got.Status != want.Status || got.UsherError() != "" {
				t.Errorf("%s %s is answered %d %s; plain: %d", method, m.name, got.Status, got.UsherError(), want.Status)
			}
			if d > slow+atOnce {
				t.Errorf("%s %s took %v; plain: %v", method, m.name, d, slow)
			}
		}
		s := c.Service(m.name)
		if s.State != "awake" || s.Instances.Ready != 1 {
			t.Errorf("%s is %s with %d ready", m.name, s.State, s.Instances.Ready)
		}
		last, _ := s.LastError.(string)
		if !regexp.MustCompile(m.reason).MatchString(last) || m.reason == "" && last != "" {
			t.Errorf("last_error of %s is %q", m.name, last)
		}
		if words, _ := c.Run("usher", "explain", m.name, "--address", c.AdminAddr); !strings.Contains(words, m.reason) {
			t.Errorf("explain says of %s:\n%s", m.name, words)
		}
	}
}
