package caddymodule

import (
	"strconv"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/caddymodule/hub"
	"github.com/caddy-usher/usher/caddymodule/option"
)

// split reads the sides of a split. Syntax:
//
//	split <service>[@<revision>] <weight> <service>[@<revision>] <weight>... [by <placeholder>] {
//		on_failing next|error
//	}
func (p *directiveParser) split(d *caddyfile.Dispenser) error {
	first := d.Token()
	args := d.RemainingArgs()
	c := new(hub.SplitConfig)
	p.handler.Split = c
	for len(args) > 0 && args[0] != "by" {
		if len(args) < 2 {
			return d.Errf("split: %s has no weight", args[0])
		}
		weight, err := strconv.Atoi(args[1])
		if err != nil {
			return d.Errf("split: the weight of %s is '%s', but must be a number from 0 to %d", args[0], args[1], hub.MostSplitWeight)
		}
		c.Sides = append(c.Sides, hub.SplitSide{Service: args[0], Weight: weight})
		args = args[2:]
	}
	if len(args) > 0 {
		by := first
		by.Text = "split by"
		tokens := []caddyfile.Token{by}
		for _, arg := range args[1:] {
			t := first
			t.Text = arg
			tokens = append(tokens, t)
		}
		b := caddyfile.NewDispenser(tokens)
		b.Next()
		var err error
		if c.By, err = placeholderArg(b, "split by"); err != nil {
			return err
		}
	}
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		switch d.Val() {
		case "on_failing":
			if err := option.Once(d, seen, "split: "); err != nil {
				return err
			}
			if !d.AllArgs(&c.OnFailing) {
				return d.Errf("split: on_failing needs one word: next or error")
			}
		default:
			return d.Errf("split has no option '%s': use on_failing", d.Val())
		}
	}
	if err := c.WithDefaults().Validate(p.handler.Service); err != nil {
		return atToken(first).Errf("split: %v", err)
	}
	return nil
}

// checkSides compares the split with the services that are defined so far. Those to
// come are compared when the configuration is loaded.
func (p *directiveParser) checkSides(d *caddyfile.Dispenser) error {
	defs, err := definitionsOf(p.helper.State, d, p.helper.Option("usher"))
	if err != nil {
		return err
	}
	if def, ok := defs[p.handler.Service]; ok {
		return d.Errf("%s is a split here, and a service, which is defined in %s: give one of them another name", p.handler.Service, def.place)
	}
	for _, name := range p.handler.services() {
		if def, ok := defs[name]; ok {
			if err := checkQueue(def.service, p.handler); err != nil {
				return d.Errf("service %s: %v", name, err)
			}
		}
	}
	return nil
}
