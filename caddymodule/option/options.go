package option

import (
	"errors"
	"strconv"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// Count reads the current token as a number between least and most.
func Count(d *caddyfile.Dispenser, option string, least, most int) (int, error) {
	n, err := strconv.Atoi(d.Val())
	if err != nil && !errors.Is(err, strconv.ErrRange) || n < least {
		return 0, d.Errf("%s: '%s' is not a number of at least %d", option, d.Val(), least)
	}
	if n > most {
		return 0, d.Errf("%s: %s is too much: at most %d", option, d.Val(), most)
	}
	return n, nil
}

// CountArg reads the one argument of an option as a number.
func CountArg(d *caddyfile.Dispenser, least, most int) (int, error) {
	option := d.Val()
	if !d.NextArg() {
		return 0, d.ArgErr()
	}
	n, err := Count(d, option, least, most)
	if err == nil && d.NextArg() {
		err = d.ArgErr()
	}
	return n, err
}

// OnOff reads the one argument of an option that is a switch.
func OnOff(d *caddyfile.Dispenser) (bool, error) {
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

// Once notes in seen that the option is given whose name is the current token,
// and returns an error if it was given before. of says in the error to what it
// belongs, as "ready: ".
func Once(d *caddyfile.Dispenser, seen map[string]bool, of string) error {
	if seen[d.Val()] {
		return d.Errf("%s%s is given twice", of, d.Val())
	}
	seen[d.Val()] = true
	return nil
}

// Block reads the block of a module: the current token's line has no more
// arguments than the module's name, read reads each option of the block, whose
// name is then the current token, and no option is given twice. At the end
// validate is called.
func Block(d *caddyfile.Dispenser, validate, read func() error) error {
	d.Next() // the name of the module
	if d.NextArg() {
		return d.ArgErr()
	}
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if err := Once(d, seen, ""); err != nil {
			return err
		}
		if err := read(); err != nil {
			return err
		}
	}
	if err := validate(); err != nil {
		return d.WrapErr(err)
	}
	return nil
}
