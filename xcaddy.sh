#!/bin/sh
# Builds ./caddy: Caddy with Usher in it. Further arguments go to xcaddy, so
# that other plugins can be added:
#
#	./xcaddy.sh --with github.com/caddy-dns/cloudflare
#
# Usher's own module for PostgreSQL is one of those:
#
#	./xcaddy.sh --with github.com/caddy-usher/usher/postgres@v0.0.0=./postgres
#
# The version of Caddy is that of go.mod; CADDY_VERSION overrides it, and
# OUTPUT names another file than ./caddy.
set -eu
cd "$(dirname "$0")"
version=${CADDY_VERSION:-$(go list -m -f '{{.Version}}' github.com/caddyserver/caddy/v2)}
# The pinned version of Usher spares go the search for one: the replacement
# says where it is.
exec go tool -modfile=tools/go.mod xcaddy build "$version" \
	--with "github.com/caddy-usher/usher@v0.0.0=$PWD" \
	--output "${OUTPUT:-./caddy}" "$@"
