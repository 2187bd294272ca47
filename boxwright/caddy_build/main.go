// Command caddy is Caddy with the modules that the stock program lacks.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	_ "caddy/slots"

	_ "github.com/caddy-dns/cloudflare"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	_ "github.com/mholt/caddy-ratelimit"
)

func main() {
	caddycmd.Main()
}
