// Package usher is a scale-to-zero load balancer for Caddy. Importing it
// registers all of Usher's modules; it has no API of its own.
package usher

import (
	_ "github.com/caddy-usher/usher/async/file"
	_ "github.com/caddy-usher/usher/backends/docker"
	_ "github.com/caddy-usher/usher/backends/kubernetes"
	_ "github.com/caddy-usher/usher/backends/marathon"
	_ "github.com/caddy-usher/usher/backends/process"
	_ "github.com/caddy-usher/usher/caddymodule"
	_ "github.com/caddy-usher/usher/caddymodule/admin"
	_ "github.com/caddy-usher/usher/caddymodule/command"
	_ "github.com/caddy-usher/usher/caddymodule/liveview"
	_ "github.com/caddy-usher/usher/cluster/etcd"
	_ "github.com/caddy-usher/usher/cluster/kubernetes"
)
