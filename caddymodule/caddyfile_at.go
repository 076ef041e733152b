package caddymodule

import (
	"strings"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/caddymodule/option"
	"github.com/caddy-usher/usher/scaler"
)

// readAt reads a window of the schedule. Syntax:
//
//	at <days> <from>-<to> [<zone>] {
//		min <n>
//	}
func readAt(s *hub.ServiceConfig, d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) < 2 || len(args) > 3 {
		return d.Errf("at needs days and hours, and may have a time zone: at mon-fri 08:00-18:00 Europe/Berlin")
	}
	from, to, ok := strings.Cut(args[1], "-")
	if !ok {
		return d.Errf("'%s' is not a span of hours, such as 08:00-18:00", args[1])
	}
	w := hub.ScheduleWindow{Days: args[0], From: from, To: to}
	if len(args) == 3 {
		w.Zone = args[2]
	}
	given := false
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		var err error
		switch name := d.Val(); name {
		case "min":
			if given {
				return d.Errf("min is given twice")
			}
			given = true
			w.Min, err = option.CountArg(d, 1, scaler.MaxInstances)
		default:
			return d.Errf("unknown option '%s' of at: use min", name)
		}
		if err != nil {
			return err
		}
	}
	if !given {
		return d.Errf("at needs the least number of instances: at %s %s { min <n> }", args[0], args[1])
	}
	if err := hub.CheckWindow(w); err != nil {
		return d.WrapErr(err)
	}
	s.At = append(s.At, w)
	return nil
}
