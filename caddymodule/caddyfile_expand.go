package caddymodule

import (
	"encoding/json"
	"strconv"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// expand returns the route that the directive becomes: the handler, with the
// routes of PHP before it if that is asked for.
func (p *directiveParser) expand(matcher caddy.ModuleMap) ([]httpcaddyfile.ConfigValue, error) {
	raw, err := moduleObject(p.handler, "handler", "usher")
	if err != nil {
		return nil, err
	}
	last := caddyhttp.Route{HandlersRaw: []json.RawMessage{raw}}
	var matchers caddyhttp.RawMatcherSets
	if matcher != nil {
		matchers = caddyhttp.RawMatcherSets{matcher}
	}
	var value any
	switch {
	case p.php == nil:
		last.MatcherSetsRaw, last.Group = matchers, p.group()
		value = last
	case matcher != nil, p.helper.IsNamedRoute():
		value = caddyhttp.Route{Group: p.group(), MatcherSetsRaw: matchers, HandlersRaw: subroute(p.php.routes(last))}
	default:
		// Not a handler: Caddy keeps these routes together, in this order.
		value = caddyhttp.Subroute{Routes: p.php.routes(last)}
	}
	return []httpcaddyfile.ConfigValue{{Class: "route", Value: value}}, nil
}

func subroute(routes caddyhttp.RouteList) []json.RawMessage {
	return []json.RawMessage{caddyconfig.JSONModuleObject(caddyhttp.Subroute{Routes: routes}, "handler", "subroute", nil)}
}

// groupKey counts the directives in the named routes of a Caddyfile.
const groupKey = "usher.groups"

// group returns a group for a route of a named route, and none for others. Of a
// named route that has only one route, without a matcher, Caddy keeps nothing
// but the first handler. It also joins neighbouring routes that differ in
// nothing, and so makes them such a one. A group of its own keeps this route
// apart; it has no other effect.
func (p *directiveParser) group() string {
	if !p.helper.IsNamedRoute() {
		return ""
	}
	n, _ := p.helper.State[groupKey].(int)
	p.helper.State[groupKey] = n + 1
	return "usher" + strconv.Itoa(n)
}

// fastCGIKey is where the services with a FastCGI transport are kept while a
// Caddyfile is read, by name, with their places.
const fastCGIKey = "usher.fastcgi"

// checkFastCGI refuses a readiness check that a FastCGI responder cannot pass.
// The service may be defined at another place.
func (p *directiveParser) checkFastCGI(d *caddyfile.Dispenser, proxy *reverseproxy.Handler) error {
	var transport struct {
		Protocol string `json:"protocol"`
	}
	if proxy == nil || len(proxy.TransportRaw) == 0 || json.Unmarshal(proxy.TransportRaw, &transport) != nil || transport.Protocol != "fastcgi" {
		return nil
	}
	defs, err := definitionsOf(p.helper.State, d, p.helper.Option("usher"))
	if err != nil {
		return err
	}
	places, _ := p.helper.State[fastCGIKey].(map[string]string)
	if places == nil {
		places = make(map[string]string)
		p.helper.State[fastCGIKey] = places
	}
	for _, name := range p.handler.services() {
		places[name] = placeOfToken(d)
		if err := refuseHTTPCheck(d, name, defs[name], places[name]); err != nil {
			return err
		}
	}
	return nil
}

// refuseHTTPCheck returns an error if a definition has a readiness check by
// HTTP, and the service is used with FastCGI.
func refuseHTTPCheck(d *caddyfile.Dispenser, name string, def placedDefinition, fastCGI string) error {
	if fastCGI == "" || def.place == "" || !def.service.ProbesHTTP() {
		return nil
	}
	return d.Errf("service %s: 'ready http' can never pass, because its instances speak FastCGI and not HTTP (defined at %s, used with FastCGI at %s): use 'ready tcp', which is the default", name, def.place, fastCGI)
}
