package caddymodule

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/async"
	"github.com/caddy-usher/usher/async/callback"
	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/caddymodule/option"
)

// headerCallback is the header by which a client names the URL that is told of the end
// of its task.
const headerCallback = "Usher-Callback"

// Callback is where clients may be told of the end of what they have handed in. They
// name a URL in the header `Usher-Callback`.
type Callback struct {
	// Prefixes of the URLs that may be named, such as `https://hooks.example.com/usher`.
	// Scheme, host and port must be equal, and the path must begin with the same
	// segments. The addresses of the host must be public, unless the host is written
	// as an address.
	Allow []string `json:"allow,omitempty"`

	// Further prefixes. Their hosts may have private addresses and those of this
	// machine.
	AllowPrivate []string `json:"allow_private,omitempty"`

	// Sign the callbacks, as Standard Webhooks says. Each is 24 to 64 bytes in base64,
	// with `whsec_` before or without. A callback has a signature for each, so that
	// receivers can change from one to the next. Required.
	Secrets []string `json:"secrets,omitempty"`

	sender *callback.Sender
}

// rules reads the prefixes.
func (c *Callback) rules() (rules []callback.Rule, err error) {
	for _, list := range []struct {
		name     string
		prefixes []string
		private  bool
	}{{"allow", c.Allow, false}, {"allow_private", c.AllowPrivate, true}} {
		for _, text := range list.prefixes {
			rule, err := callback.ParseRule(text, list.private)
			if err != nil {
				return nil, fmt.Errorf("%s: '%s' is no prefix of URLs: %w", list.name, text, err)
			}
			rules = append(rules, rule)
		}
	}
	if rules == nil {
		return nil, errors.New("it needs prefixes of URLs, in allow or allow_private")
	}
	if len(c.Secrets) == 0 {
		return nil, errors.New("it needs a secret, by which receivers check where a callback comes from")
	}
	return rules, nil
}

// provision makes the sender.
func (c *Callback) provision() error {
	rules, err := c.rules()
	if err != nil {
		return err
	}
	o := callback.Options{Rules: rules}
	for _, text := range c.Secrets {
		value := caddy.NewReplacer().ReplaceKnown(text, "")
		if value == "" {
			return fmt.Errorf("secret: '%s' is empty", text) // a placeholder, if anything
		}
		secret, err := callback.ParseSecret(value)
		if err != nil {
			return fmt.Errorf("secret: %w", err) // without the text
		}
		o.Secrets = append(o.Secrets, secret)
	}
	c.sender = callback.New(o)
	return nil
}

// read reads the block of the option.
func (c *Callback) read(d *caddyfile.Dispenser) error {
	if d.NextArg() {
		return d.ArgErr()
	}
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if err := option.Once(d, seen, "callback: "); err != nil {
			return err
		}
		var to *[]string
		switch name := d.Val(); name {
		case "allow":
			to = &c.Allow
		case "allow_private":
			to = &c.AllowPrivate
		case "secret":
			to = &c.Secrets
		default:
			return d.Errf("callback has no option '%s': use allow, allow_private or secret", name)
		}
		if *to = d.RemainingArgs(); len(*to) == 0 {
			return d.ArgErr()
		}
	}
	return nil
}

// setCallback lets n have the callback for which r asks, or returns an error in words
// for the client.
func (h *Handler) setCallback(n *async.NewTask, r *http.Request) error {
	asked := r.Header.Values(headerCallback)
	if len(asked) == 0 {
		return nil
	}
	if h.Async.Callback == nil {
		return fmt.Errorf("service %s sends no callbacks: leave out the header %s", h.Service, headerCallback)
	}
	if len(asked) > 1 {
		return fmt.Errorf("there is more than one header %s", headerCallback)
	}
	if err := h.Async.Callback.sender.Allows(asked[0]); err != nil {
		return fmt.Errorf("service %s does not accept the URL in %s: %w", h.Service, headerCallback, err)
	}
	n.Callback = asked[0]
	if n.Key != "" {
		n.Fingerprint += "\n" + n.Callback
	}
	scheme := "http://"
	if n.Request.Secure {
		scheme = "https://"
	}
	n.Request.StatusURL = scheme + r.Host + taskURL(r, "")
	return nil
}

var _ hub.TaskPlace = (*callback.Sender)(nil)
