package caddymodule

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// noProxyOptions is `proxy` without options.
var noProxyOptions = []byte("{}")

// ownedInProxy are the options of reverse_proxy that `proxy` does not take,
// with what to use instead.
var ownedInProxy = map[string]string{
	"upstreams":         "the instances come from the service's backend",
	"dynamic_upstreams": "the instances come from the service's backend",
	"health_checks":     "use the service's ready; an instance that fails is ejected",
	"circuit_breaker":   "an instance that fails is ejected and probed again",
}

// loadProxy loads the reverse_proxy that the handler has itself. All handlers
// of a server whose proxies have no options share one: which instance a request
// goes to comes with the request, and most of what a route costs is its proxy.
func (h *Handler) loadProxy(ctx caddy.Context) error {
	plain := bytes.Equal(h.ProxyRaw, noProxyOptions)
	if plain && h.shared.proxy != nil {
		h.Proxy, h.ProxyRaw = h.shared.proxy, nil
		return nil
	}
	raw, err := completeProxy(h.ProxyRaw)
	if err != nil {
		return err
	}
	mod, err := ctx.LoadModuleByID("http.handlers.reverse_proxy", raw)
	if err != nil {
		return err
	}
	h.Proxy, h.ProxyRaw = mod.(*reverseproxy.Handler), nil
	if plain {
		h.shared.proxy = h.Proxy
	}
	return nil
}

// completeProxy adds Usher's own options and defaults to the options of a
// proxy.
func completeProxy(raw json.RawMessage) (json.RawMessage, error) {
	var options map[string]json.RawMessage
	if err := json.Unmarshal(raw, &options); err != nil {
		return nil, err
	}
	if options == nil {
		return nil, errors.New("it is null: write {} for a proxy without options")
	}
	delay := false
	for name := range options {
		// As encoding/json reads it, whatever the case.
		for owned, instead := range ownedInProxy {
			if strings.EqualFold(name, owned) {
				return nil, fmt.Errorf("%s belongs to usher: %s", name, instead)
			}
		}
		delay = delay || strings.EqualFold(name, optionStreamCloseDelay)
	}
	options["dynamic_upstreams"] = json.RawMessage(`{"source":"usher"}`)
	if !delay {
		options[optionStreamCloseDelay] = strconv.AppendInt(nil, int64(streamCloseDelay), 10)
	}
	return json.Marshal(options)
}
