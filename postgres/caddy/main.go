// Command caddy is Caddy with its standard modules, Usher and the module for
// PostgreSQL: the binary that the tests from outside run.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/caddy-usher/usher"
	_ "github.com/caddy-usher/usher/postgres"
)

func main() {
	caddycmd.Main()
}
