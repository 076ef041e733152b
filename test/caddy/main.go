// Command caddy is Caddy with its standard modules and Usher: the binary that
// the black-box tests run. It differs from a build made with xcaddy only in
// where it stands.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/caddy-usher/usher"
)

func main() {
	caddycmd.Main()
}
