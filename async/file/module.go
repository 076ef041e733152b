package file

import (
	"path/filepath"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-usher/usher/async"
)

func init() { caddy.RegisterModule(Opener{}) }

// Opener describes the store that is embedded in Caddy, in its data directory. It
// belongs to one Caddy: another one that uses the same directory is refused.
type Opener struct{}

// CaddyModule returns the Caddy module information.
func (Opener) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "usher.stores.file", New: func() caddy.Module { return new(Opener) }}
}

// Open implements async.Opener.
func (Opener) Open(e async.Env) (async.Store, error) {
	s, err := Open(filepath.Join(e.DataDir, "tasks"), Options{Key: e.Key})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// UnmarshalCaddyfile sets up the module from Caddyfile tokens. Syntax:
//
//	store file
func (*Opener) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if d.NextArg() {
		return d.ArgErr()
	}
	if d.NextBlock(d.Nesting()) {
		return d.Errf("store file takes no options: encrypt is one of async")
	}
	return nil
}

var (
	_ async.Opener          = Opener{}
	_ caddyfile.Unmarshaler = (*Opener)(nil)
)
