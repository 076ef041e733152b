package liveview

import (
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/caddymodule/option"
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
//		output on|off
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
		name := d.Val()
		err := option.Once(d, seen, "")
		if err != nil {
			return err
		}
		switch name {
		case "control":
			h.Control, err = option.OnOff(d)
		case "output":
			var shown bool
			shown, err = option.OnOff(d)
			h.HideOutput = !shown
		case "title":
			if !d.AllArgs(&h.Title) {
				err = d.ArgErr()
			}
		case "max_streams":
			h.MaxStreams, err = option.CountArg(d, 1, hub.MaxStreamsBound)
		default:
			err = d.Errf("unknown option '%s' of usher_status", name)
		}
		if err != nil {
			return err
		}
		if d.NextBlock(1) {
			return d.Errf("%s has no block", name)
		}
	}
	return nil
}

var _ caddyfile.Unmarshaler = (*Status)(nil)
