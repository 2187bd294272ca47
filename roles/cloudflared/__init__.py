"""Cloudflare Tunnel: the gateway on the internet, without an open port and without an address of the box's own.

`cloudflared`, from Cloudflare's own package repository or on a Mac from Homebrew, connects from the box to Cloudflare;
what comes back over that connection goes to the gateway and nowhere else. Off by default, since it opens the box to the
internet: the gateway must ask for credentials then, on every path.

With `cloudflared_credentials` the rules are kept here, in `/etc/boxwright/cloudflared/config.yml`, and are refused when
they lead anywhere but to the gateway. With `cloudflared_token` they are kept at Cloudflare, where this machine cannot
refuse them: they are read back from the running program, and a run fails when one leads past the gateway.
"""
