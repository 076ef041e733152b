package docker

import (
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// known are the options of the block, for messages.
const known = "host, ca_file, cert_file, key_file, port, network, address, idle, pause_timeout, copies; and for an image env, volume, memory, cpus, user, label, pull, registry_auth"

// UnmarshalCaddyfile sets up the backend from Caddyfile tokens. Syntax:
//
//	backend docker <container> | compose <project>/<service> | label <key>[=<value>] | image <image> [<command...>] {
//		host          <url>
//		ca_file       <path>
//		cert_file     <path>
//		key_file      <path>
//		port          <n>
//		network       <name>
//		address       auto|container|published
//		idle          stop|pause
//		pause_timeout <duration>
//		copies        on|off
//		env           <name> <value>
//		volume        <volume...>
//		memory        <size>
//		cpus          <n>
//		user          <user>
//		label         <key> <value>
//		pull          missing|always|never
//		registry_auth <user> <password>
//	}
func (b *Backend) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the name of the backend
	if err := b.unmarshalForm(d, d.RemainingArgs()); err != nil {
		return err
	}
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		for _, read := range []func(*caddyfile.Dispenser, map[string]bool) (bool, error){
			b.unmarshalAccess, b.unmarshalReach, b.unmarshalImage,
		} {
			ok, err := read(d, seen)
			if err != nil {
				return err
			}
			if ok {
				option = ""
				break
			}
		}
		if option != "" {
			return d.Errf("unrecognized option '%s' of backend docker; it knows %s", option, known)
		}
	}
	// What contradicts itself is found when the file is adapted.
	if _, err := b.resolveUnknown(); err != nil {
		return d.Errf("backend docker: %v", err)
	}
	return nil
}

// resolveUnknown checks what can be checked before placeholders and the global
// options are known.
func (b *Backend) resolveUnknown() (*plan, error) {
	for _, text := range []string{b.Container, b.Compose, b.Label, b.Image, b.Host, b.Memory} {
		if strings.Contains(text, "{") {
			return nil, nil //nolint:nilnil // Provision checks it
		}
	}
	shared := *b
	if shared.Host == "" {
		// The host may be a shared option, and so may be its files.
		shared.CAFile, shared.CertFile, shared.KeyFile = "", "", ""
	}
	return shared.resolve(nil)
}

// unmarshalForm reads what stands after `backend docker`.
func (b *Backend) unmarshalForm(d *caddyfile.Dispenser, args []string) error {
	const syntax = "backend docker <container> | compose <project>/<service> | label <key>[=<value>] | image <image> [<command...>]"
	if len(args) == 0 {
		return d.Err("backend docker needs to know which containers: " + syntax)
	}
	var into *string
	switch form(args[0]) {
	case formCompose:
		into = &b.Compose
	case formLabel:
		into = &b.Label
	case formImage:
		into = &b.Image
	}
	switch {
	case into == nil && len(args) == 1:
		b.Container = args[0]
		return nil
	case into == nil:
		return d.Errf("backend docker takes the name of one container, not '%s'; the syntax is %s", strings.Join(args, " "), syntax)
	case len(args) < 2:
		return d.Errf("backend docker %s lacks what it is about; the syntax is %s", args[0], syntax)
	case into != &b.Image && len(args) > 2:
		return d.Errf("backend docker %s takes one value, not '%s'", args[0], strings.Join(args[1:], " "))
	}
	*into = args[1]
	b.Command = args[2:]
	return nil
}

// unmarshalAccess reads an option that says how the engine is reached.
func (b *Backend) unmarshalAccess(d *caddyfile.Dispenser, seen map[string]bool) (bool, error) {
	var err error
	switch d.Val() {
	case "host":
		b.Host, err = one(d, seen)
	case "ca_file":
		b.CAFile, err = one(d, seen)
	case "cert_file":
		b.CertFile, err = one(d, seen)
	case "key_file":
		b.KeyFile, err = one(d, seen)
	default:
		return false, nil
	}
	return true, err
}

// unmarshalReach reads an option that says how containers are reached, and how
// they rest.
func (b *Backend) unmarshalReach(d *caddyfile.Dispenser, seen map[string]bool) (bool, error) {
	var err error
	var value string
	switch d.Val() {
	case "port":
		if value, err = one(d, seen); err == nil {
			if b.Port, err = strconv.Atoi(value); err != nil || b.Port < 1 || b.Port > 65535 {
				err = d.Errf("port '%s': give a number from 1 to 65535", value)
			}
		}
	case "network":
		b.Network, err = one(d, seen)
	case "address":
		b.Address, err = one(d, seen)
	case "idle":
		b.Idle, err = one(d, seen)
	case "pause_timeout":
		if value, err = one(d, seen); err == nil {
			dur, parseErr := caddy.ParseDuration(value)
			if parseErr != nil || dur <= 0 {
				return true, d.Errf("pause_timeout '%s': give a duration, such as 1h", value)
			}
			b.PauseTimeout = caddy.Duration(dur)
		}
	case "copies":
		if value, err = one(d, seen); err == nil {
			if value != "on" && value != "off" {
				return true, d.Errf("copies '%s' is unknown: use on or off", value)
			}
			b.Copies = value == "on"
		}
	default:
		return false, nil
	}
	return true, err
}

// unmarshalImage reads an option of containers that Usher makes.
func (b *Backend) unmarshalImage(d *caddyfile.Dispenser, seen map[string]bool) (bool, error) {
	var err error
	var value string
	switch d.Val() {
	case "env":
		err = pair(d, &b.Env)
	case "label":
		err = pair(d, &b.Labels)
	case "volume":
		volumes := d.RemainingArgs()
		if len(volumes) == 0 {
			return true, d.Err("volume takes one or more volumes, such as data:/var/lib/data or /srv/www:/www:ro")
		}
		b.Volumes = append(b.Volumes, volumes...)
	case "memory":
		b.Memory, err = one(d, seen)
	case "cpus":
		if value, err = one(d, seen); err == nil {
			if b.CPUs, err = strconv.ParseFloat(value, 64); err != nil || b.CPUs <= 0 {
				err = d.Errf("cpus '%s': give a number of CPUs, such as 0.5", value)
			}
		}
	case "user":
		b.User, err = one(d, seen)
	case "pull":
		b.Pull, err = one(d, seen)
	case "registry_auth":
		if seen["registry_auth"] {
			return true, d.Err("registry_auth is given twice")
		}
		seen["registry_auth"] = true
		auth := new(RegistryAuth)
		if !d.AllArgs(&auth.User, &auth.Password) {
			return true, d.Err("registry_auth takes a user and a password: registry_auth <user> <password>")
		}
		b.RegistryAuth = auth
	default:
		return false, nil
	}
	return true, err
}

// pair reads a name and a value into a map.
func pair(d *caddyfile.Dispenser, into *map[string]string) error {
	option := d.Val()
	var name, value string
	if !d.AllArgs(&name, &value) || name == "" {
		return d.Errf("%s takes a name and a value: %s <name> <value>", option, option)
	}
	if _, twice := (*into)[name]; twice {
		return d.Errf("%s %s is given twice", option, name)
	}
	if *into == nil {
		*into = make(map[string]string)
	}
	(*into)[name] = value
	return nil
}

// MergeDefaults fills in what the global option says: nothing if this service
// is on an engine of its own, since certificates belong to the host that they
// were given with.
func (b *Backend) MergeDefaults(shared any) {
	s, ok := shared.(*Backend)
	if !ok || b.Host != "" {
		return
	}
	b.Host = s.Host
	if b.CAFile == "" {
		b.CAFile = s.CAFile
	}
	if b.CertFile == "" && b.KeyFile == "" {
		b.CertFile, b.KeyFile = s.CertFile, s.KeyFile
	}
}

// UnmarshalCaddyfileDefaults reads the global option `docker` of Usher: the
// engine of services that do not name another. Syntax:
//
//	docker {
//		host      <url>
//		ca_file   <path>
//		cert_file <path>
//		key_file  <path>
//	}
func (b *Backend) UnmarshalCaddyfileDefaults(d *caddyfile.Dispenser) error {
	d.Next() // the name of the option
	if d.NextArg() {
		return d.Err("docker takes no arguments, but a block: docker { host <url> }")
	}
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		ok, err := b.unmarshalAccess(d, seen)
		if err != nil {
			return err
		}
		if !ok {
			return d.Errf("unrecognized option '%s' of docker; it knows host, ca_file, cert_file, key_file", option)
		}
	}
	return nil
}

// one reads the only value of an option that may be given once.
func one(d *caddyfile.Dispenser, seen map[string]bool) (string, error) {
	option := d.Val()
	if seen[option] {
		return "", d.Errf("%s is given twice", option)
	}
	seen[option] = true
	var value string
	if !d.AllArgs(&value) || value == "" {
		return "", d.Errf("%s takes exactly one value", option)
	}
	return value, nil
}

// Interface guard.
var _ caddyfile.Unmarshaler = (*Backend)(nil)
