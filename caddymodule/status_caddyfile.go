package caddymodule

import (
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func init() {
	httpcaddyfile.RegisterHandlerDirective("usher_status", parseStatusDirective)
	httpcaddyfile.RegisterDirectiveOrder("usher_status", httpcaddyfile.After, "metrics")
}

func parseStatusDirective(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	s := new(Status)
	return s, s.UnmarshalCaddyfile(h.Dispenser)
}

// UnmarshalCaddyfile reads the directive. Syntax:
//
//	usher_status [<matcher>] {
//		control on|off
//		title <text>
//		max_streams <n>
//	}
func (h *Status) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if d.NextArg() {
		return d.ArgErr()
	}
	seen := make(map[string]bool)
	for d.NextBlock(0) {
		option := d.Val()
		if seen[option] {
			return d.Errf("%s is given twice", option)
		}
		seen[option] = true
		var err error
		switch option {
		case "control":
			h.Control, err = onOff(d)
		case "title":
			if !d.AllArgs(&h.Title) {
				err = d.ArgErr()
			}
		case "max_streams":
			h.MaxStreams, err = countArg(d, 1)
		default:
			err = d.Errf("unknown option '%s' of usher_status", option)
		}
		if err != nil {
			return err
		}
		if d.NextBlock(1) {
			return d.Errf("%s has no block", option)
		}
	}
	return nil
}

// onOff reads the one argument of an option that is a switch.
func onOff(d *caddyfile.Dispenser) (bool, error) {
	option := d.Val()
	var word string
	if !d.AllArgs(&word) {
		return false, d.ArgErr()
	}
	if word != "on" && word != "off" {
		return false, d.Errf("%s is on or off, not '%s'", option, word)
	}
	return word == "on", nil
}

var _ caddyfile.Unmarshaler = (*Status)(nil)
