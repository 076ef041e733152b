// Command stock is Caddy with its standard modules alone: what the size of
// the binary and the time to build it are compared with.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
)

func main() {
	caddycmd.Main()
}
