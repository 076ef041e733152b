package caddymodule

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/caddymodule/option"
)

func init() {
	httpcaddyfile.RegisterDirective("usher", parseDirective)
	httpcaddyfile.RegisterDirectiveOrder("usher", httpcaddyfile.Before, "reverse_proxy")
}

const (
	// streamCloseDelay lets a reload cut no stream. Its timer ends with the
	// last stream.
	streamCloseDelay       = caddy.Duration(24 * time.Hour)
	optionStreamCloseDelay = "stream_close_delay"
)

// owned are the options of reverse_proxy that Usher sees to itself, with what
// to use instead.
var owned = map[string]string{
	"to":                      "the instances come from the service's backend",
	"dynamic":                 "the instances come from the service's backend",
	"lb_policy":               "use balance",
	"lb_try_duration":         "use wait_timeout",
	"lb_try_interval":         "a request waits for the next free slot; use wait_timeout",
	"health_uri":              "use ready http <path>",
	"health_path":             "use ready http <path>",
	"health_upstream":         "use ready",
	"health_port":             "use ready",
	"health_headers":          "use ready http { header }",
	"health_method":           "use ready",
	"health_request_body":     "use ready",
	"health_interval":         "use ready { interval }",
	"health_timeout":          "use ready { timeout }",
	"health_status":           "use ready http { status }",
	"health_body":             "use ready http { status }",
	"health_follow_redirects": "use ready http with the path that is redirected to",
	"health_passes":           "one probe that passes makes an instance ready",
	"health_fails":            "an instance that fails three times in a row is ejected and probed again",
	"fail_duration":           "an instance that fails is ejected and probed again with growing pauses",
	"max_fails":               "an instance that fails three times in a row is ejected",
	"unhealthy_status":        "an instance is judged by what happens to its connections",
	"unhealthy_latency":       "use transport http { response_header_timeout }",
	"unhealthy_request_count": "use concurrency",
}

// parseDirective reads the directive. Syntax:
//
//	usher [<matcher>] <service>|<placeholder> {
//		# of the service, where it is named
//		backend <type> <args...> { ... }
//		instances <min> [<max>]
//		overlap on|off
//		concurrency <n>|unlimited
//		idle_timeout <duration>|off
//		start_timeout <duration>
//		start_attempts <n>
//		drain_timeout <duration>
//		stop_timeout <duration>
//		max_waiting <n>
//		balance least_loaded|oldest|random
//		ready tcp|http [<path>]|platform { ... }
//		scale <policy> { ... }
//		error_detail short|full
//		affinity cookie [<name>] { max_age, same_site, path, domain }
//		affinity key <placeholder> { spill }
//		session_timeout <duration>
//
//		# of this place
//		from <pattern>
//		wait_timeout <duration>
//		wake <matcher>
//		server_timing
//		waiting_page [<file>] { after, refresh, title, matcher }
//		priority high|low [<matcher>]
//		fair_by <placeholder> { max_waiting }
//		async [<matcher>] { ... }
//		php { index, try_files, <options of transport fastcgi> }
//		<options of reverse_proxy>
//	}
//
// It makes one handler; with php, routes come before that.
func parseDirective(h httpcaddyfile.Helper) ([]httpcaddyfile.ConfigValue, error) {
	if !h.Next() {
		return nil, h.ArgErr()
	}
	matcher, err := h.ExtractMatcherSet()
	if err != nil {
		return nil, err
	}
	d := h.Dispenser
	d.Next()
	directive := d.Token()
	if !d.NextArg() {
		return nil, d.Errf("usher needs the name of a service")
	}
	p := &directiveParser{helper: h, handler: &Handler{Service: d.Val()}, seen: make(map[string]bool)}
	name := d.Token()
	if !isPlaceholder(p.handler.Service) {
		if err := hub.CheckName(p.handler.Service); err != nil {
			return nil, d.WrapErr(err)
		}
	}
	if d.NextArg() {
		return nil, d.Errf("unexpected argument '%s': the instances of service %s come from its backend, not from addresses", d.Val(), p.handler.Service)
	}
	for d.NextBlock(0) {
		if err := p.option(d); err != nil {
			return nil, fmt.Errorf("service %s: %w", p.handler.Service, err)
		}
	}
	if err := p.definition(name); err != nil {
		return nil, err
	}
	proxy, err := p.proxyHandler(directive)
	if err != nil {
		return nil, fmt.Errorf("service %s: %w", p.handler.Service, err)
	}
	if err := p.checkFastCGI(atToken(name), proxy); err != nil {
		return nil, err
	}
	if p.handler.ProxyRaw, err = p.proxyOptions(proxy); err != nil {
		return nil, fmt.Errorf("service %s: %w", p.handler.Service, err)
	}
	return p.expand(matcher)
}

// directiveParser collects what a block says.
type directiveParser struct {
	helper  httpcaddyfile.Helper
	handler *Handler
	service hub.ServiceConfig
	seen    map[string]bool
	first   *caddyfile.Token // the first option of the service
	proxy   []caddyfile.Token
	php     *php // nil unless asked for

	transport bool // one is configured
}

// placeOptions are the names of the options of the place. Each may stand once,
// but for priority.
var placeOptions = []string{"from", "wait_timeout", "wake", "server_timing", "waiting_page", "priority", "fair_by", "async", "php", "split", optionStreamCloseDelay}

// option reads one option, whose name is the current token.
func (p *directiveParser) option(d *caddyfile.Dispenser) error {
	name := d.Val()
	if _, ok := serviceOptions[name]; ok {
		if p.first == nil {
			t := d.Token()
			p.first = &t
		}
		return readOption(&p.service, d, p.seen)
	}
	if instead, ok := owned[name]; ok {
		return d.Errf("%s belongs to usher: %s", name, instead)
	}
	if slices.Contains(placeOptions, name) && name != "priority" {
		if err := option.Once(d, p.seen, ""); err != nil {
			return err
		}
	}
	switch name {
	case "wait_timeout":
		v, err := positive(d)
		p.handler.WaitTimeout = v
		return err
	case "wake":
		return p.wake(d)
	case "from":
		if !d.AllArgs(&p.handler.From) {
			return d.ArgErr()
		}
		if !isPlaceholder(p.handler.Service) {
			return d.Errf("from is for a service that a placeholder names, and %s is a name", p.handler.Service)
		}
		return nil
	case "server_timing":
		if d.NextArg() {
			return d.ArgErr()
		}
		p.handler.ServerTiming = true
		return nil
	case "waiting_page":
		return p.waitingPage(d)
	case "priority":
		return p.priority(d)
	case "fair_by":
		return p.fairBy(d)
	case "async":
		return p.async(d)
	case "php":
		return p.parsePHP(d)
	case "split":
		return p.split(d)
	}
	p.transport = p.transport || name == "transport"
	p.proxy = append(p.proxy, d.NextSegment()...)
	return nil
}

// wake reads the matcher of the requests that wake the service.
func (p *directiveParser) wake(d *caddyfile.Dispenser) (err error) {
	p.handler.WakeRaw, err = p.matcher(d)
	return err
}

// matcher reads the matcher that an option takes; none matches all.
func (p *directiveParser) matcher(d *caddyfile.Dispenser) (caddyhttp.RawMatcherSets, error) {
	option := d.Val()
	set, ok, err := p.helper.WithDispenser(d).MatcherToken()
	if err != nil {
		return nil, d.WrapErr(err)
	}
	if !ok && d.Val() != "*" {
		return nil, d.Errf("%s needs a matcher: a named one (@name), a path, or *", option)
	}
	if d.NextArg() {
		return nil, d.ArgErr()
	}
	if set == nil {
		return nil, nil
	}
	return caddyhttp.RawMatcherSets{set}, nil
}

// waitingPage reads the options of the waiting page.
func (p *directiveParser) waitingPage(d *caddyfile.Dispenser) error {
	page := new(WaitingPage)
	p.handler.WaitingPage = page
	if d.NextArg() {
		page.File = d.Val()
		if d.NextArg() {
			return d.ArgErr()
		}
	}
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if err := option.Once(d, seen, "waiting_page: "); err != nil {
			return err
		}
		var err error
		switch name := d.Val(); name {
		case "after":
			err = optional(&page.After, d)
		case "refresh":
			page.Refresh, err = positive(d)
		case "title":
			if !d.AllArgs(&page.Title) {
				err = d.ArgErr()
			}
		case "matcher":
			page.MatchRaw, err = p.matcher(d)
		default:
			err = d.Errf("waiting_page has no option '%s': use after, refresh, title or matcher", name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// definition decides whether the block defines the service, and if so
// compares with what was said of it elsewhere.
func (p *directiveParser) definition(name caddyfile.Token) error {
	d := caddyfile.NewDispenser([]caddyfile.Token{name})
	d.Next()
	if p.handler.Split != nil {
		if p.first != nil {
			return atToken(*p.first).Errf("%s belongs to the definition of a service, and %s is a split: put it where its sides are defined", p.first.Text, p.handler.Service)
		}
		if err := p.handler.checkSplit(); err != nil {
			return d.Errf("split %s: %v", p.handler.Service, err)
		}
		return p.checkSides(d)
	}
	if isPlaceholder(p.handler.Service) {
		if p.first != nil {
			return atToken(*p.first).Errf("%s belongs to the definition of a service, and %s names one that is made while Caddy runs: put it into a template", p.first.Text, p.handler.Service)
		}
		if _, err := newLookup(p.handler.Service, p.handler.From); err != nil {
			return d.WrapErr(err)
		}
		return nil
	}
	if !p.seen["backend"] {
		if p.first != nil {
			return atToken(*p.first).Errf("%s belongs where service %s is defined: to the block with its backend", p.first.Text, p.handler.Service)
		}
		return nil
	}
	p.handler.Define = &p.service
	if err := checkQueue(p.service.WithDefaults(), p.handler); err != nil {
		return d.Errf("service %s: %v", p.handler.Service, err)
	}
	return defineOnce(p.helper.State, d, p.handler.Service, p.service, p.helper.Option("usher"))
}

// atToken returns a dispenser at t, for messages with its place.
func atToken(t caddyfile.Token) *caddyfile.Dispenser {
	d := caddyfile.NewDispenser([]caddyfile.Token{t})
	d.Next()
	return d
}

// stateKey is where the definitions of a Caddyfile are kept while it is read.
const stateKey = "usher.definitions"

// placedDefinition is a definition and where it stands.
type placedDefinition struct {
	service hub.ServiceConfig // with its defaults
	place   string
}

// defineOnce refuses a second definition that is not equal to the first.
func defineOnce(state map[string]any, d *caddyfile.Dispenser, name string, s hub.ServiceConfig, global any) error {
	s = s.WithDefaults()
	if err := s.Validate(); err != nil {
		return d.Errf("service %s: %v", name, err)
	}
	defs, err := definitionsOf(state, d, global)
	if err != nil {
		return err
	}
	here := placedDefinition{service: s, place: placeOfToken(d)}
	if other, ok := defs[name]; ok {
		// The forms to compare are made only here: most services are defined once.
		diff, err := s.Differs(other.service)
		if err != nil {
			return d.WrapErr(err)
		}
		if diff != "" {
			return d.Errf("service %s is defined twice, and not in the same way: %s and %s differ in %s", name, other.place, here.place, diff)
		}
		return nil
	}
	defs[name] = here
	places, _ := state[fastCGIKey].(map[string]string)
	return refuseHTTPCheck(d, name, here, places[name])
}

func placeOfToken(d *caddyfile.Dispenser) string { return fmt.Sprintf("%s:%d", d.File(), d.Line()) }

// definitionsOf returns the definitions that were read so far, by name.
func definitionsOf(state map[string]any, d *caddyfile.Dispenser, global any) (map[string]placedDefinition, error) {
	if defs, ok := state[stateKey].(map[string]placedDefinition); ok {
		return defs, nil
	}
	defs := make(map[string]placedDefinition)
	state[stateKey] = defs
	if app, ok := global.(httpcaddyfile.App); ok {
		if err := globalDefinitions(app, defs); err != nil {
			return nil, d.WrapErr(err)
		}
	}
	return defs, nil
}

func globalDefinitions(app httpcaddyfile.App, defs map[string]placedDefinition) error {
	var a App
	if err := json.Unmarshal(app.Value, &a); err != nil {
		return err
	}
	for name, s := range a.Services {
		defs[name] = placedDefinition{service: s.WithDefaults(), place: "the global options"}
	}
	return nil
}

// proxyOptions returns the options of proxy, which is nil without.
func (p *directiveParser) proxyOptions(proxy *reverseproxy.Handler) (json.RawMessage, error) {
	if proxy == nil {
		return noProxyOptions, nil
	}
	raw, err := json.Marshal(proxy)
	if err == nil && p.seen[optionStreamCloseDelay] && proxy.StreamCloseDelay == 0 {
		// Left out it would be Usher's default.
		raw, err = hub.WithKey(raw, optionStreamCloseDelay, 0)
	}
	return raw, err
}

// proxyHandler makes the reverse_proxy from the options that are not Usher's.
// It is nil if there are none.
func (p *directiveParser) proxyHandler(directive caddyfile.Token) (*reverseproxy.Handler, error) {
	if len(p.proxy) == 0 && p.php == nil {
		return nil, nil
	}
	tokens := []caddyfile.Token{directive}
	tokens[0].Text = "reverse_proxy"
	if len(p.proxy) > 0 {
		open, end := directive, directive
		open.Text, end.Text = "{", "}"
		// On a line of its own, wherever the last token ends. It is made from
		// the directive because a brace that was quoted would be none.
		last := p.proxy[len(p.proxy)-1]
		end.File, end.Line = last.File, last.Line+last.NumLineBreaks()+1
		tokens = append(append(append(tokens, open), p.proxy...), end)
	}
	rp := new(reverseproxy.Handler)
	d := caddyfile.NewDispenser(tokens)
	if err := rp.UnmarshalCaddyfile(d); err != nil {
		return nil, p.suggest(err)
	}
	if err := rp.FinalizeUnmarshalCaddyfile(p.helper.WithDispenser(d)); err != nil {
		return nil, err
	}
	if p.php != nil {
		if p.transport {
			return nil, atToken(directive).Errf("php has a transport of its own: put the options of 'transport fastcgi' into its block")
		}
		rp.TransportRaw = caddyconfig.JSONModuleObject(p.php.transport, "protocol", "fastcgi", nil)
	}
	if lb := rp.LoadBalancing; lb != nil && lb.Retries < 0 {
		return nil, atToken(directive).Errf("lb_retries cannot be negative, but is %d", lb.Retries)
	}
	return rp, nil
}

// suggest adds to the error for an unknown option the one of Usher's that looks
// most like it, if one does.
func (p *directiveParser) suggest(err error) error {
	for _, t := range p.proxy {
		if !strings.Contains(err.Error(), "unrecognized subdirective "+t.Text) {
			continue
		}
		best, nearest := "", 3
		for name := range serviceOptions {
			if n := editDistance(t.Text, name); n < nearest || n == nearest && name < best {
				best, nearest = name, n
			}
		}
		for _, name := range placeOptions {
			if n := editDistance(t.Text, name); n < nearest || n == nearest && name < best {
				best, nearest = name, n
			}
		}
		if best != "" {
			return fmt.Errorf("%w (did you mean '%s'?)", err, best)
		}
	}
	return err
}

// editDistance is how many letters have to be added, removed or replaced to make
// b of a.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			above := row[j+1]
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			row[j+1] = min(cost, above+1, row[j]+1)
			diagonal = above
		}
	}
	return row[len(b)]
}
