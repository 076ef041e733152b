package caddymodule

import (
	"math"
	"strconv"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/caddymodule/option"
)

// readNeeds reads
//
//	needs <service...> [{
//		ready|started
//	}]
func readNeeds(s *hub.ServiceConfig, d *caddyfile.Dispenser) error {
	names := d.RemainingArgs()
	if len(names) == 0 {
		return d.ArgErr()
	}
	started, said := false, false
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		word := d.Val()
		if said {
			return d.Errf("needs: say ready or started, once")
		}
		said, started = true, word == "started"
		if word != "ready" && word != "started" {
			return d.Errf("needs: '%s' is unknown: use ready or started", word)
		}
		if d.NextArg() {
			return d.ArgErr()
		}
	}
	for _, name := range names {
		if err := hub.CheckName(name); err != nil {
			return d.Errf("needs: %v", err)
		}
		s.Needs = append(s.Needs, hub.Need{Service: name, Started: started})
	}
	return nil
}

func readGroup(s *hub.ServiceConfig, d *caddyfile.Dispenser) error {
	if !d.AllArgs(&s.Group) {
		return d.ArgErr()
	}
	if err := hub.CheckName(s.Group); err != nil {
		return d.Errf("group: %v", err)
	}
	return nil
}

func readMaxRequests(s *hub.ServiceConfig, d *caddyfile.Dispenser) (err error) {
	s.MaxRequests, err = option.CountArg(d, 1, math.MaxInt32)
	return err
}

func readMaxAge(s *hub.ServiceConfig, d *caddyfile.Dispenser) (err error) {
	s.MaxAge, err = positive(d)
	return err
}

// readBusy reads
//
//	busy http <path>
//	busy cpu <percent>
func readBusy(s *hub.ServiceConfig, d *caddyfile.Dispenser) error {
	var how, value string
	if !d.AllArgs(&how, &value) {
		return d.ArgErr()
	}
	s.Busy = new(hub.Busy)
	switch how {
	case "http":
		s.Busy.HTTP = value
		if value == "" || value[0] != '/' {
			return d.Errf("busy: the path '%s' must begin with '/'", value)
		}
	case "cpu":
		percent, err := strconv.ParseFloat(value, 64)
		if err != nil || !(percent > 0) || math.IsInf(percent, 0) {
			return d.Errf("busy: '%s' is not a percentage, such as 10", value)
		}
		s.Busy.CPU = percent
	default:
		return d.Errf("busy: '%s' is unknown: use http and a path, or cpu and a percentage", how)
	}
	return nil
}
