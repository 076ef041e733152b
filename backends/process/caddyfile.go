package process

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// UnmarshalCaddyfile sets up the backend from Caddyfile tokens. Syntax:
//
//	backend process <command> [<args...>] {
//		dir         <path>
//		env         <name> <value>
//		env_file    <path...>
//		user        <name>
//		stop_signal <name>
//		listen      tcp [<address>]|unix|fd
//		output      log|discard
//	}
func (b *Backend) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the name of the backend
	if !d.NextArg() {
		return d.Err("backend process needs a command: backend process <command> [<args...>]")
	}
	b.Command = d.Val()
	b.Args = d.RemainingArgs()

	for nesting := d.Nesting(); d.NextBlock(nesting); {
		var field *string
		switch option := d.Val(); option {
		case "dir":
			field = &b.Dir
		case "user":
			field = &b.User
		case "stop_signal":
			field = &b.StopSignal
		case "listen":
			if err := b.unmarshalListen(d); err != nil {
				return err
			}
			continue
		case "output":
			field = &b.Output
		case "env":
			if err := b.unmarshalEnv(d); err != nil {
				return err
			}
			continue
		case "env_file":
			files := d.RemainingArgs()
			if len(files) == 0 || slices.Contains(files, "") {
				return d.Err("env_file takes the path of a file, or several: env_file <path...>")
			}
			b.EnvFile = append(b.EnvFile, files...)
			continue
		default:
			return d.Errf("unrecognized option '%s' of backend process; it knows dir, env, env_file, user, stop_signal, listen, output", option)
		}
		option := d.Val()
		if *field != "" {
			return d.Errf("%s is given twice", option)
		}
		var value string
		if !d.AllArgs(&value) || value == "" {
			return d.Errf("%s takes exactly one value", option)
		}
		*field = value
		if err := checkWord(option, value); err != nil {
			return d.WrapErr(err)
		}
	}
	return b.checkPlaceholders(d)
}

// checkWord refuses, where the line is still known, what Provision would
// refuse later.
func checkWord(option, value string) error {
	switch option {
	case "output":
		if value != "log" && value != "discard" {
			return fmt.Errorf("output %q is not known; it is one of log, discard", value)
		}
	case "stop_signal":
		_, err := parseStopSignal(value)
		return err
	}
	return nil
}

// checkPlaceholders refuses placeholders that no process has a value for. It
// reads no variable and no file: those are the running Caddy's.
func (b *Backend) checkPlaceholders(d *caddyfile.Dispenser) error {
	listen := b.Listen
	if listen == "" {
		listen = listenTCP
	}
	resolve := newResolver(listen)
	resolve.dry = true
	for _, text := range slices.Concat([]string{b.Command, b.Dir, b.User, b.Address}, b.Args, b.EnvFile, slices.Collect(maps.Values(b.Env))) {
		if _, err := resolve.parse(text); err != nil {
			return d.WrapErr(err)
		}
	}
	return nil
}

// unmarshalListen reads `listen tcp [<address>]|unix|fd`.
func (b *Backend) unmarshalListen(d *caddyfile.Dispenser) error {
	if b.Listen != "" {
		return d.Err("listen is given twice")
	}
	if !d.Args(&b.Listen) || b.Listen == "" {
		return d.Err("listen takes one of tcp, unix, fd")
	}
	switch b.Listen {
	case listenTCP, listenUnix, listenFD:
	default:
		return d.Errf("listen %q is not known; it is one of tcp, unix, fd", b.Listen)
	}
	switch rest := d.RemainingArgs(); {
	case len(rest) == 0:
		return nil
	case len(rest) > 1 || rest[0] == "":
		return d.Err("listen tcp takes one address at most: listen tcp [<address>]")
	default:
		b.Address = rest[0]
	}
	if strings.Contains(b.Address, "{") && b.Listen == listenTCP {
		return nil // Provision knows
	}
	if _, err := parseFixedAddress(b.Listen, b.Address); err != nil {
		return d.WrapErr(err)
	}
	return nil
}

// unmarshalEnv reads `env <name> <value>`.
func (b *Backend) unmarshalEnv(d *caddyfile.Dispenser) error {
	var name, value string
	if !d.AllArgs(&name, &value) {
		return d.Err("env takes a name and a value: env <name> <value>")
	}
	if _, twice := b.Env[name]; twice {
		return d.Errf("env %s is given twice", name)
	}
	if err := checkVariable(name); err != nil {
		return d.WrapErr(err)
	}
	if b.Env == nil {
		b.Env = make(map[string]string)
	}
	b.Env[name] = value
	return nil
}

// Interface guard.
var _ caddyfile.Unmarshaler = (*Backend)(nil)
