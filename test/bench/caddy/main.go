// Command caddy is the Caddy that the benchmark measures, with Usher and
// without: without, where the configuration does not name it. Beside Usher it
// has the stand-in of the benchmark.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/caddy-usher/usher"
	_ "github.com/caddy-usher/usher/test/bench/standin"
)

func main() {
	caddycmd.Main()
}
