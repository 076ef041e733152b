package caddymodule

import (
	"strings"
	"testing"
)

// namedRoute is a Caddyfile with a named route and a site.
func namedRoute(route, body string) string {
	return "{\n\tauto_https off\n}\n&(app) {\n" + route + "\n}\n:80 {\n" + body + "\n}\n"
}

func TestServiceInANamedRouteIsReached(t *testing.T) {
	t.Parallel()
	for name, around := range map[string][2]string{
		"alone":                     {"", ""},
		"after another directive":   {"header X-Before yes\n", ""},
		"before another directive":  {"", "\nfile_server"},
		"in a handle":               {"handle {\n", "\n}"},
		"in a route":                {"route {\nheader X-Before yes\n", "\n}"},
		"with a matcher of its own": {"@all path *\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t)
			directive := f.usher()
			if strings.HasPrefix(around[0], "@all") {
				directive = strings.Replace(directive, "usher ", "usher @all ", 1)
			}
			c := start(t, namedRoute(around[0]+directive+around[1], "handle /a/* {\ninvoke app\n}\ninvoke app"))
			for _, path := range []string{"/a/b", "/c"} {
				r := c.get(path)
				if r.status != 200 || !strings.HasPrefix(r.body, "GET "+path) {
					t.Errorf("%s: %+v", path, r)
				}
				if strings.Contains(around[0], "X-Before") != (r.header.Get("X-Before") == "yes") {
					t.Errorf("%s: the directive before it is lost: %v", path, r.header)
				}
			}
		})
	}
}

// A slot that nothing used is a mistake in the configuration: it is said once,
// with what to do.
func TestSlotThatIsNotUsedIsLoggedOnce(t *testing.T) {
	t.Parallel()
	const usher = `{"handler": "usher", "service": "NAME", "define": {"backend": {"type": "test", "fleet": "NAME"}}}`
	const unused = "a request had a slot and was not sent to the instance: give the handler 'usher' a proxy, or let a reverse_proxy with the dynamic upstreams 'usher' follow in the same route. " +
		"A handler that answers requests by itself, such as a cache, belongs before 'usher'"
	for name, x := range map[string]struct {
		next string
		logs int
	}{
		"nothing follows":          {``, 1},
		"something else answers":   {`, {"handler": "static_response", "body": "cached"}`, 1},
		"it is refused on the way": {`, {"handler": "static_response", "status_code": 401}`, 0},
		"the proxy follows":        {`, {"handler": "reverse_proxy", "dynamic_upstreams": {"source": "usher"}}`, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t)
			handlers := strings.ReplaceAll(usher, "NAME", f.name) + x.next
			c := start(t, `{"apps": {"http": {"servers": {"srv0": {"listen": [":80"], "automatic_https": {"disable": true}, "routes": [{"handle": [`+handlers+`]}]}}}}}`)
			for range 3 {
				if r := c.get("/"); r.err != nil {
					t.Fatal(r.err)
				}
			}
			logs := 0
			logBuffers.Range(func(_, b any) bool {
				for _, e := range b.(*logBuffer).entries(unused) {
					if e["service"] == f.name {
						logs++
					}
				}
				return true
			})
			if logs != x.logs {
				t.Errorf("logged %d times; want %d", logs, x.logs)
			}
		})
	}
}

func TestDynamicUsherWithoutAServiceIsRefused(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"reverse_proxy": "reverse_proxy {\ndynamic usher\n}",
		"php_fastcgi":   "php_fastcgi {\ndynamic usher\n}",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := tryProvision(t, site(text))
			if err == nil || !strings.Contains(err.Error(), "usher <service> { ... }") || !strings.Contains(err.Error(), "usher <service> { php }") {
				t.Errorf("%v", err)
			}
		})
	}
}

// Within the handle_response of a service another proxy can have the same
// instance.
func TestDynamicUsherInTheResponseRouteOfAServiceHasItsInstance(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	c := start(t, site(f.usher("@all status 200", "handle_response @all {\nrewrite * /second\nreverse_proxy {\ndynamic usher\n}\n}")))
	if r := c.get("/first"); r.status != 200 || !strings.HasPrefix(r.body, "GET /second") {
		t.Errorf("%+v", r)
	}
	if st := serving(t, f.name).Reserver.Stats(); st.InUse != 0 {
		t.Errorf("%+v", st)
	}
}

// Without the handler there is one clear error, and not one for each try.
func TestDynamicUpstreamsWithoutTheHandlerLogOneError(t *testing.T) {
	t.Parallel()
	c := start(t, `{"apps": {"usher": {}, "http": {"servers": {"srv0": {"listen": [":80"], "automatic_https": {"disable": true}, "routes": [{"handle": [{"handler": "reverse_proxy", "dynamic_upstreams": {"source": "usher"}}]}]}}}}}`)
	for range 3 {
		if r := c.get("/"); r.status != 503 {
			t.Errorf("%+v", r)
		}
	}
	b := logsOf(logName(t))
	errors := b.entries("requests come to the dynamic upstreams 'usher' without a reservation and are answered 503: put the handler 'usher' before this reverse_proxy in the same route")
	if len(errors) != 1 || errors[0]["level"] != "error" {
		t.Errorf("%v", errors)
	}
	if more := b.entries("failed getting dynamic upstreams; falling back to static upstreams"); len(more) > 0 {
		t.Errorf("%d errors of the proxy's", len(more))
	}
}
