package caddymodule

import (
	"strings"
	"testing"
)

// A Caddyfile is refused when it is adapted: see the golden files.
func TestAnHTTPCheckOfAFastCGIServiceFailsTheLoadOfJSON(t *testing.T) {
	t.Parallel()
	const (
		proxy    = `{"handler":"reverse_proxy","transport":{"protocol":"fastcgi"},"dynamic_upstreams":{"source":"usher"}}`
		overHTTP = `{"handler":"reverse_proxy","dynamic_upstreams":{"source":"usher"}}`
		header   = `{"handler":"headers"}`
	)
	subroute := func(handlers string) string {
		return `{"handler":"subroute","routes":[{"handle":[` + handlers + `]}]}`
	}
	for name, x := range map[string]struct {
		routes, more string
		refused      bool
	}{
		"side by side":                {routes: `{"handle":[WEB,` + proxy + `]}`, refused: true},
		"with a handler between":      {routes: `{"handle":[WEB,` + header + `,` + proxy + `]}`, refused: true},
		"in a subroute":               {routes: `{"handle":[` + subroute(`WEB,`+proxy) + `]}`, refused: true},
		"the proxy in a subroute":     {routes: `{"handle":[WEB,` + subroute(header+`,`+subroute(proxy)) + `]}`, refused: true},
		"in a named route":            {routes: `{"handle":[{"handler":"invoke","name":"n"}]}`, more: `,"named_routes":{"n":{"handle":[WEB,` + proxy + `]}}`, refused: true},
		"the proxy in a named route":  {routes: `{"handle":[WEB,{"handler":"invoke","name":"n"}]}`, more: `,"named_routes":{"n":{"handle":[` + proxy + `]}}`, refused: true},
		"a named route within itself": {routes: `{"handle":[{"handler":"invoke","name":"n"}]}`, more: `,"named_routes":{"n":{"handle":[WEB,{"handler":"invoke","name":"n"},` + overHTTP + `]}}`},
		"in the error routes":         {more: `,"errors":{"routes":[{"handle":[WEB,` + proxy + `]}]}`, refused: true},
		"after a response": {
			routes:  `{"handle":[{"handler":"reverse_proxy","upstreams":[{"dial":"a:1"}],"handle_response":[{"routes":[{"handle":[WEB,` + proxy + `]}]}]}]}`,
			refused: true,
		},
		"by HTTP":                        {routes: `{"handle":[WEB,` + overHTTP + `]}`},
		"another service by FastCGI":     {routes: `{"handle":[WEB,` + overHTTP + `]},{"handle":[OTHER,` + proxy + `]}`},
		"the nearer service by FastCGI":  {routes: `{"handle":[WEB,` + subroute(`OTHER,`+proxy) + `]}`},
		"the other one again afterwards": {routes: `{"handle":[WEB,` + subroute(`OTHER,`+overHTTP) + `,` + proxy + `]}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			web, other := serviceFor(t), serviceFor(t)+"o"
			text := `{"apps":{"usher":{"services":{"` + web + `":{"backend":{"type":"test","fleet":"` + web + `"},"ready":{"check":"http"}},"` + other + `":{"backend":{"type":"test","fleet":"` + other + `"}}}},` +
				`"http":{"servers":{"main":{"listen":[":80"],"automatic_https":{"disable":true},"routes":[` + x.routes + `]` + x.more + `}}}}}`
			text = strings.NewReplacer("WEB", `{"handler":"usher","service":"`+web+`"}`, "OTHER", `{"handler":"usher","service":"`+other+`"}`).Replace(text)
			newFleetNamed(t, web)
			newFleetNamed(t, other)
			c, err := tryProvision(t, text)
			if err != nil {
				t.Fatal(err)
			}
			err = c.app.Start()
			switch {
			case !x.refused && err != nil:
				t.Errorf("refused: %v", err)
			case x.refused && (err == nil || !strings.Contains(err.Error(), "service "+web+" ") || !strings.Contains(err.Error(), "'ready http' can never pass")):
				t.Errorf("not refused, or without the reason: %v", err)
			}
		})
	}
}
