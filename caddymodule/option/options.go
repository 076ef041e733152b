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
