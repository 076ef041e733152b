package caddymodule

import (
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// withProxy is a configuration with one route for each of the proxies, all of
// the same service.
func withProxy(f *fleet, proxies ...string) string {
	var routes []string
	for _, proxy := range proxies {
		routes = append(routes, `{"match":[{"path":["/`+string(rune('a'+len(routes)))+`"]}],"handle":[{"handler":"usher","service":"`+f.name+`","proxy":`+proxy+`}]}`)
	}
	return `{"apps":{"usher":{"services":{"` + f.name + `":{"backend":{"type":"test","fleet":"` + f.name + `"}}}},
		"http":{"servers":{"main":{"listen":[":80"],"automatic_https":{"disable":true},"routes":[` + strings.Join(routes, ",") + `]}}}}}`
}

// proxies returns the proxies of the handlers, in their order.
func (c *config) proxies() (ps []*reverseproxy.Handler) {
	app, _ := c.app.ctx.AppIfConfigured("http")
	for _, route := range app.(*caddyhttp.App).Servers["main"].Routes {
		ps = append(ps, route.Handlers[0].(*Handler).Proxy)
	}
	return ps
}

func TestAHandlerWithAProxySendsRequestsItself(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	c := start(t, withProxy(f, `{}`, `{"headers":{"response":{"set":{"X-Set":["yes"]}}}}`))
	for path, set := range map[string]string{"/a": "", "/b": "yes"} {
		if r := c.get(path); r.status != 200 || !strings.HasPrefix(r.body, "GET "+path) || r.header.Get("X-Set") != set {
			t.Errorf("%s: %+v", path, r)
		}
	}
	if st := serving(t, f.name).Reserver.Stats(); st.InUse != 0 {
		t.Errorf("%+v", st)
	}
}

func TestHandlersOfAServerShareTheProxyWithoutOptions(t *testing.T) {
	t.Parallel()
	ps := provision(t, withProxy(newFleet(t), `{}`, `{"flush_interval":-1}`, `{}`, `{"flush_interval":-1}`)).proxies()
	if ps[0] == nil || ps[0] != ps[2] {
		t.Error("each has its own")
	}
	if ps[1] == ps[0] || ps[1] == ps[3] {
		t.Error("proxies with options, which may have state of their own, are shared")
	}
}

func TestAReloadCutsNoStreamsUnlessThatIsAskedFor(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	for proxy, want := range map[string]time.Duration{
		`{}`:                          24 * time.Hour,
		`{"flush_interval":-1}`:       24 * time.Hour,
		`{"stream_close_delay":0}`:    0,
		`{"STREAM_close_delay":"1s"}`: time.Second,
	} {
		if got := time.Duration(provision(t, withProxy(f, proxy)).proxies()[0].StreamCloseDelay); got != want {
			t.Errorf("%s: %s; want %s", proxy, got, want)
		}
	}
}

func TestOptionsOfAProxyAreChecked(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	for proxy, want := range map[string]string{
		`null`:                                   "write {} for a proxy without options",
		`1`:                                      "proxy",
		`{"upstreams":[{"dial":"127.0.0.1:1"}]}`: "upstreams belongs to usher",
		`{"Upstreams":[{"dial":"127.0.0.1:1"}]}`: "Upstreams belongs to usher",
		`{"dynamic_upstreams":{"source":"a"}}`:   "dynamic_upstreams belongs to usher",
		`{"health_checks":{"active":{"uri":"/"}}}`:    "health_checks belongs to usher",
		`{"circuit_breaker":{"type":"a"}}`:            "circuit_breaker belongs to usher",
		`{"handler":"reverse_proxy"}`:                 "unknown field",
		`{"no_such_option":1}`:                        "no_such_option",
		`{"load_balancing":{"retries":-1}}`:           "retries cannot be negative",
		`{"transport":{"protocol":"carrier_pigeon"}}`: "carrier_pigeon",
	} {
		_, err := tryProvision(t, withProxy(f, proxy))
		if err == nil || !strings.Contains(err.Error(), "service "+f.name+": proxy: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: the message does not say %q: %v", proxy, want, err)
		}
	}
}
