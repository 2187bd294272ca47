"""Tailscale: the box is in a private network of its own, and serves there what is declared.

Off unless `tailscale_enabled`. The program comes from Tailscale's own package repository; on a Mac it is the
open-source daemon, from Homebrew, and not Tailscale's app, which runs only while somebody is signed in. The box joins
with an auth key or an OAuth client secret, which no argument, log or lasting file holds; a box that is in a tailnet is
left in it, and what is declared of it is changed with `tailscale set`.

`tailscale_serve` lists what the box serves in the tailnet, and with `public` what Funnel shows to the internet: the
gateway, and nothing else. `boxwright remove` takes the box out of a tailnet that boxwright brought it into.

Switched off later, the box stays in its tailnet, since a run may come over it; only what it serves there ends.
"""
